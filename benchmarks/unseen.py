"""Train rows that a task's own stage did not train on: fresh rows, and no test row is looked at."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from ella_cli.config import RunSettings
from ella_cli.tasks import Task, load_task


def with_unseen_rows(name: str, settings: RunSettings, data: Path, count: int) -> Task:
    """The task with the run's own train rows, and `count` others in the place of its test rows."""
    own = load_task(
        name, data=data, limit=settings.limit, validation=settings.validation, seed=settings.seed
    )
    seen = {(row.text, row.answer) for row in own.train}
    others = [row for row in load_task(name, data=data).train if (row.text, row.answer) not in seen]
    if len(others) < count:
        raise SystemExit(f"{name} has {len(others)} train rows that the run has not seen")
    return replace(own, test=tuple(random.Random(0).sample(others, count)))
