"""One more task under several penalties: what the earlier tasks lose on rows not trained on.

    python -m benchmarks.held_out RUN --data DATA --stage 2 --penalties sum:0 curvature:10 ...

RUN is an `ella run` whose first `--stage` tasks are trained, with curvature. The task after them is
trained anew for each `energy:λ` or `energy:λ:optimizer`; then cross-entropy, divergence from the
answers before, and greedy accuracy are measured on train rows of each that its own stage was not
trained on. No test row is read. This is how the default strength was chosen
(docs/results/choices.md).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from benchmarks.curvature import chances, nll
from benchmarks.unseen import with_unseen_rows
from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import EvaluateSettings, RunSettings
from ella_cli.evaluate.grid import encode_prompts, score_task
from ella_cli.files import read_json, write_json
from ella_cli.inspect.curvature import rises_of
from ella_cli.inspect.run_stages import read_run_stages
from ella_cli.model.base import Base, load_base
from ella_cli.model.fold import Fold
from ella_cli.past import Past
from ella_cli.tasks import Task
from ella_cli.training.assignment import Assignment
from ella_cli.training.manifest import versions
from ella_cli.training.task import encode_rows, train_task

Look = list[tuple[float, float, Tensor]]  # of each task: loss, accuracy, log-chances


def look(base: Base, adapters: list[Adapter], tasks: list[Task], settings: RunSettings) -> Look:
    """The model that the adapters add up to, on fresh rows of every task."""
    past = Past.of(adapters)
    evaluation = EvaluateSettings(model=settings.model)
    found = []
    with Fold(base.model) as fold:
        fold.set(past.names, past.delta)
        for task in tasks:
            rows = encode_rows(base, [replace(task, train=task.test)], settings)
            log_chances, labels = chances(base, rows)
            prompts = encode_prompts(base, task, evaluation)
            score = score_task(base, task, prompts, evaluation).score
            found.append((nll(log_chances, labels), score, log_chances))
    return found


def row_of(name: str, tasks: list[Task], before: Look, now: Look) -> dict[str, Any]:
    row: dict[str, Any] = {"penalty": name}
    for task, (loss, _, was), (new_loss, score, chance) in zip(tasks, before, now, strict=True):
        row[task.spec.name] = {
            "loss": new_loss,
            "rise": new_loss - loss,
            "kl": float((was.exp() * (was - chance)).sum(-1).mean()),
            "accuracy": score,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage", type=int, default=2, help="how many tasks are there already")
    parser.add_argument("--penalties", nargs="+", default=["sum:0", "curvature:10"])
    parser.add_argument("--rows", type=int, default=60, help="fresh train rows a task")
    parser.add_argument("--learning-rate", type=float, help="of that task; by default the run's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/held-out.json"))
    given = parser.parse_args()
    stages = read_run_stages(given.run)
    settings = RunSettings.model_validate(read_json(given.run / "run.json")["settings"])
    rate = given.learning_rate or settings.learning_rate
    earlier = [one for one in stages.adapters[: given.stage] if one is not None]
    tasks = [
        with_unseen_rows(name, settings, given.data, given.rows)
        for name in stages.order[: given.stage + 1]
    ]
    base = load_base(settings.model, dtype=settings.dtype)
    before = look(base, earlier, tasks, settings)
    rows = [row_of("before", tasks, before, before)]
    for penalty in given.penalties:
        energy, lam, *optim = penalty.split(":")
        values = {"energy": energy, "lam": float(lam), "curvature_rows": 0, "method": "ella"}
        values["learning_rate"] = rate
        asked = settings.model_copy(update=values | {"optim": (optim or [settings.optim])[0]})
        assignment = Assignment(
            tasks[-1].spec.name, tasks[-1:], given.stage, Past.of(earlier), tuple(earlier)
        )
        with TemporaryDirectory() as scratch:
            manifest = train_task(base, assignment, asked, Path(scratch) / "adapter")
            adapter = read_adapter(Path(scratch) / "adapter")
            now = look(base, [*earlier, adapter], tasks, settings)
            row = row_of(penalty, tasks, before, now)
            row["curves"] = manifest["curves"]
            row["update_norm"] = math.hypot(*manifest["update_norms"].values())
            row["predicted"] = {one.task: one.nats for one in rises_of(adapter, Past.of(earlier))}
        rows.append(row)
        print(row, flush=True)
    facts = {"rows": given.rows, "learning_rate": rate, "versions": versions()}
    write_json(given.out, facts | {"penalties": rows})


if __name__ == "__main__":
    main()
