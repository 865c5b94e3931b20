"""Flash attention against plain products on a CPU, forward and backward, by length.

    python -m benchmarks.short_attention [--tokens 40 72 128 160 300] [--rounds 4]

One step is forward and backward of SmolLM2 with LoRA of rank 8 on q and v, 8 rows of random tokens.
The kernels take turns; the clock is the processor time of one thread. `_PLAIN_UP_TO` in
ella_cli/model/attention.py is below where they cross.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ella_cli.config import TrainSettings
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora
from ella_cli.training.manifest import versions

_BATCH = 8
_KERNELS = {"flash": SDPBackend.FLASH_ATTENTION, "plain": SDPBackend.MATH}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", nargs="+", type=int, default=[40, 72, 128, 160, 300])
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base("smollm2", device="cpu")
    model = attach_lora(base, TrainSettings(), seed=0).train()
    print(f"{base.source}, {base.precision}, batch of {_BATCH}, 1 thread, {versions()}")
    for tokens in asked.tokens:
        ids = torch.randint(len(base.tokenizer), (_BATCH, tokens)).tolist()
        batch = base.collator()([{"input_ids": row, "labels": row[-2:]} for row in ids])
        batch.pop("labels")
        batch.pop("shift_labels", None)
        taken: dict[str, list[float]] = {name: [] for name in _KERNELS}
        for _ in range(asked.rounds + 1):
            for name, kernel in _KERNELS.items():
                begun = time.thread_time()
                with sdpa_kernel(kernel):
                    logits = model(**batch).logits.float()  # (8, 2, V)
                logits.logsumexp(dim=-1).mean().backward()
                taken[name].append(time.thread_time() - begun)
        # The first round of each warms up.
        flash, plain = (statistics.median(taken[name][1:]) for name in _KERNELS)
        print(
            f"{tokens:5d} tokens: flash {flash:.3f} s, plain {plain:.3f} s ({plain / flash:.2f} x)"
        )


if __name__ == "__main__":
    main()
