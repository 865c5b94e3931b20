"""The rows of past tasks that replay keeps: a few of each, the same ones at every later stage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ella_cli.tasks import Task


def kept_rows(tasks: Sequence[Task], share: float, seed: int) -> list[Task]:
    """Each task with `share` of its train rows, at least one, drawn by `seed` and its name."""
    return [_with_few_rows(task, share, seed) for task in tasks]


def _with_few_rows(task: Task, share: float, seed: int) -> Task:
    count = max(1, round(share * len(task.train)))
    # A string seeds by its characters, on every machine alike.
    chance = random.Random(f"replay {seed} {task.spec.name}")
    return replace(task, train=tuple(chance.sample(task.train, count)))
