"""Training with ella's Trainer against transformers' own, on the same model and batches.

    python -m benchmarks.throughput [--model smollm2] [--steps 12] [--rounds 3]

The plain Trainer gets the same PEFT model, rows, collator and loss function, so that the difference
is what ella adds to every step: watching the loss, keeping the last good weights, curves, progress.
The two take turns, first one first, then the other. The clock is processor time of the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PrinterCallback, Trainer

from ella_cli.config import TrainSettings
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, detach_lora
from ella_cli.progress import SILENCE
from ella_cli.tasks import load_task
from ella_cli.training.manifest import versions
from ella_cli.training.strength import Strength
from ella_cli.training.task import encode_rows
from ella_cli.training.trainer import answer_cross_entropy, build_trainer
from ella_cli.training.watch import StepWatch

Rows = list[dict[str, list[int]]]


def seconds(base: Base, rows: Rows, settings: TrainSettings, folder: Path, *, plain: bool) -> float:
    """Processor time of one training, a step."""
    model = attach_lora(base, settings, seed=0)
    ours = build_trainer(base, model, rows, settings, seed=0, checkpoints=folder)
    ours.strength = Strength(0.0)
    trainer: Trainer = ours
    if plain:
        trainer = Trainer(
            model=model,
            args=ours.args,
            train_dataset=rows,
            data_collator=ours.data_collator,
            compute_loss_func=answer_cross_entropy,
        )
        trainer.remove_callback(PrinterCallback)
    else:
        advance = SILENCE.begin("train", settings.max_steps or 1)
        trainer.add_callback(StepWatch(ours, advance, SILENCE.warn, "task", []))
    begun = time.process_time()
    trainer.train()
    taken = time.process_time() - begun
    detach_lora(model)
    return taken / (settings.max_steps or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    base = load_base(asked.model, device="cpu")
    settings = TrainSettings(max_steps=asked.steps, limit=8 * asked.steps)
    rows = encode_rows(base, [load_task("demo-topic", limit=8 * asked.steps)], settings)
    taken: dict[bool, list[float]] = {True: [], False: []}
    print(f"{base.source}, {asked.steps} steps of 8 rows, {versions()}")
    with TemporaryDirectory() as scratch:
        for number in range(asked.rounds + 1):
            for plain in (True, False) if number % 2 else (False, True):
                one = seconds(base, rows, settings, Path(scratch) / "out", plain=plain)
                # The first round also pays for memory and code.
                if number:
                    taken[plain].append(one)
                    print(f"{'plain' if plain else 'ella':>5}  {one:.3f} s a step", flush=True)
    plain_s, ours_s = statistics.median(taken[True]), statistics.median(taken[False])
    print(f"ella / plain: {ours_s / plain_s:.3f} ({ours_s:.3f} s against {plain_s:.3f} s)")


if __name__ == "__main__":
    main()
