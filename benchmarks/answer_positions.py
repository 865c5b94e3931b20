"""A training pass with the head on answer positions, named by a mask or by a count.

    python -m benchmarks.answer_positions [--model smollm2]

Times forward and backward on one batch of the built-in demo task, the two ways in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ella_cli.config import TrainSettings
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora
from ella_cli.tasks import load_task
from ella_cli.tasks.batches import Collator
from ella_cli.training.manifest import versions
from ella_cli.training.task import encode_rows

ROUNDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    base = load_base(parser.parse_args().model)
    settings = TrainSettings(limit=8)
    rows = encode_rows(base, [load_task("demo-topic", limit=8)], settings)
    model = attach_lora(base, settings, seed=0).train()
    pad = base.tokenizer.pad_token_id
    assert isinstance(pad, int)
    batch = Collator(pad, base.kind)(rows)
    mask = batch.pop("logits_to_keep")
    first = int(mask.any(dim=0).to(torch.int64).argmax())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    ways = {"mask": mask, "count": mask.shape[1] - first}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, keep in ways.items():
            started = time.perf_counter()
            logits = model(**inputs, logits_to_keep=keep).logits.float()
            logits.logsumexp(dim=-1).sum().backward()
            seconds[way].append(time.perf_counter() - started)
    print(
        f"{base.source}, batch {tuple(mask.shape)}, {torch.get_num_threads()} threads, {versions()}"
    )
    for way, taken in seconds.items():
        # The first pass of each also pays for memory and code.
        print(f"{way:>5}  median {statistics.median(taken[1:]):.3f} s of {ROUNDS - 1}")


if __name__ == "__main__":
    main()
