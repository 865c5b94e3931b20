"""Trains a few steps in a process of its own and says how much memory it has had at most.

    python -m benchmarks.training_peak --batch 4 --tokens 128

Prints JSON: bytes of interpreter and libraries (`process`), the peak (`peak`), the longest
sequence and answer it trained on, and seconds a step after the first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ella_cli.adapter import read_adapter
from ella_cli.config import TrainSettings
from ella_cli.model.base import Base, load_base
from ella_cli.past import Past, accumulate
from ella_cli.plan.process import peak_bytes, process_bytes
from ella_cli.progress import Advance, Silence
from ella_cli.tasks import Task, load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.task import encode_rows, train_task

STEPS = 3


class Clock(Silence):
    """Notes when each step is done."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def begin(self, what: str, total: int) -> Advance:
        ticks: list[float] = []
        if what.startswith("train"):
            self.ticks = ticks
        return lambda done, words: ticks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of a prompt")
    parser.add_argument("--earlier", type=int, default=0, help="tasks learned before")
    parser.add_argument("--store", default="factored")
    asked = parser.parse_args()
    process = process_bytes()
    base = load_base(asked.model, dtype=asked.dtype, device="cpu")
    settings = TrainSettings(
        max_steps=STEPS,
        per_device_train_batch_size=asked.batch,
        max_source_length=asked.tokens,
        lam=1.0,
        curvature_rows=0,
    )
    task = _long_rows(3 * asked.batch)
    rows = encode_rows(base, [task], settings)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        past = _past(base, asked.earlier, asked.store, Path(folder))
        assignment = Assignment("peak", [task], asked.earlier, past)
        train_task(base, assignment, settings, Path(folder) / "peak", progress=clock)
    after_first = (clock.ticks[-1] - clock.ticks[0]) / (len(clock.ticks) - 1)
    measured = {
        "process": process,
        "peak": peak_bytes(),
        "tokens": max(len(row["input_ids"]) for row in rows),
        "answers": max(len(row["labels"]) for row in rows),
        "step_seconds": after_first,
    }
    json.dump(measured, sys.stdout)


def _long_rows(count: int) -> Task:
    """Rows whose text is longer than any prompt may be, so that every sequence is full."""
    task = load_task("demo-topic", limit=count)
    return replace(task, train=tuple(replace(r, text=f"{r.text} " * 200) for r in task.train))


def _past(base: Base, count: int, store: str, folder: Path) -> Past | None:
    """Of `count` tasks that one short step each was spent on."""
    if not count:
        return None
    settings = TrainSettings(
        max_steps=1, per_device_train_batch_size=1, max_source_length=64, curvature_rows=0
    )
    adapters = []
    for index in range(count):
        task = load_task("demo-mood", limit=1, seed=index)
        train_task(base, Assignment(f"t{index}", [task], index), settings, folder / f"t{index}")
        adapters.append(read_adapter(folder / f"t{index}").path)
    path = folder / "wpast.safetensors"
    return accumulate(adapters, path, store="dense" if store == "dense" else "factored").past


if __name__ == "__main__":
    main()
