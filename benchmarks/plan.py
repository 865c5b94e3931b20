"""What `ella plan` says against what training takes, in processes of their own.

    python -m benchmarks.plan

Each line trains SmolLM2 for three steps on the CPU and compares the peak of its resident memory
with the plan for the same sequences; the last columns do so for a step's time, which is an
estimate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ella_cli.config import RunSettings
from ella_cli.model.source import resolve_source
from ella_cli.plan import make_plan, measure_rates
from ella_cli.training.manifest import versions


@dataclass(frozen=True)
class Case:
    dtype: str
    batch: int
    tokens: int
    earlier: int = 0
    store: str = "factored"

    @property
    def name(self) -> str:
        past = f", {self.earlier} tasks {self.store}" if self.earlier else ""
        return f"{self.dtype} {self.batch} x {self.tokens}{past}"


CASES = (
    Case("bfloat16", 2, 128),
    Case("bfloat16", 8, 256),
    Case("float32", 2, 128),
    Case("float32", 4, 256),
    Case("float32", 4, 256, 3),
    Case("float32", 4, 256, 3, "dense"),
    Case("float32", 1, 512, 3, "dense"),
)


def measured(case: Case) -> dict[str, Any]:
    """What `benchmarks.training_peak` prints for `case`."""
    # The first load ever unpacks the model, which takes a second copy of it for a moment.
    resolve_source("smollm2")
    flags = {
        "dtype": case.dtype,
        "batch": case.batch,
        "tokens": case.tokens,
        "earlier": case.earlier,
        "store": case.store,
    }
    command = [sys.executable, "-m", "benchmarks.training_peak"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def planned(case: Case, truth: dict[str, Any]) -> dict[str, Any]:
    """The plan for the sequences that `truth` was measured on."""
    settings = RunSettings(
        dtype=case.dtype,  # type: ignore[arg-type]
        device="cpu",
        per_device_train_batch_size=case.batch,
    )
    rates = measure_rates(torch.device("cpu"), getattr(torch, case.dtype))
    return make_plan(
        settings,
        rates,
        process_bytes=truth["process"],
        tasks=case.earlier + 1,
        tokens=truth["tokens"],
        answers=truth["answers"],
        store="dense" if case.store == "dense" else "factored",
    ).to_json()


def main() -> None:
    torch.set_num_threads(1)
    print(f"smollm2, cpu, 1 thread, {versions()}")
    print("case | process MB | peak MB | planned MB | planned / peak | step s | planned s")
    for case in CASES:
        truth = measured(case)
        plan = planned(case, truth)
        sizes = [truth["process"], truth["peak"], plan["peak_bytes"]]
        ratio = plan["peak_bytes"] / truth["peak"]
        shown = " | ".join(f"{size / 1e6:.0f}" for size in sizes)
        times = f"{truth['step_seconds']:.2f} | {plan['step_seconds']:.2f}"
        print(f"{case.name} | {shown} | {ratio:.3f} | {times}", flush=True)


if __name__ == "__main__":
    main()
