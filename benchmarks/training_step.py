"""What a penalty adds to a training step: the same step without, with the paper's, with curvature.

    python -m benchmarks.training_step [--past-tasks 1 4 15 100] [--task dbpedia --data DATA]

One step is forward, backward and AdamW on one batch of a task's first rows, LoRA of rank 8 on q and
v; `--model`, `--device` and `--batch` say of what, where and how many. On the CPU the clock is the
processor time of one thread, so that neighbours on a shared machine count little; on CUDA it is
wall time up to the end of the last kernel. The kinds of step take turns all the same.

A penalty is a small part of a step, and steps differ by more than that on a shared machine. So each
is also timed alone, forward and backward, right after a step that had none, which has left nothing
of it in the caches; and so is AdamW's own step, in the weights' coordinates and in the past's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from benchmarks.past import write_adapter
from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.config import TrainSettings
from ella_cli.curvature import DIRECTIONS, INPUT_COLUMNS, OUTPUT_COLUMNS
from ella_cli.kernels import Kronecker
from ella_cli.model.attention import short_attention
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.past import Past, accumulate
from ella_cli.penalty import CurvaturePenalty, EllaPenalty, Penalty
from ella_cli.tasks import load_task
from ella_cli.tasks.batches import Collator
from ella_cli.training.basis import PastBasis
from ella_cli.training.manifest import versions
from ella_cli.training.task import encode_rows

CURVATURE_RANK = 64


def synthetic_past(model: nn.Module, tasks: int, folder: Path) -> Past:
    shapes = {}
    for name, layer in lora_layers(model).items():
        b, a, _ = lora_pair(layer)
        shapes[name] = (b.shape[0], a.shape[1])
    adapters = [write_adapter(folder / f"task{i}", shapes, i) for i in range(tasks)]
    for path in adapters:
        adapter = read_adapter(path)
        # As SmolLM2's fall off: 5 % of the traces are past 27 columns, where a large past is cut.
        fall = 0.946 ** torch.arange(CURVATURE_RANK)
        random = {
            name: Kronecker(
                torch.randn(rows, CURVATURE_RANK) * fall,
                torch.randn(columns, CURVATURE_RANK) * fall,
                u_floor=1e-2,
                v_floor=1e-2,
                directions=torch.randn(DIRECTIONS, OUTPUT_COLUMNS, INPUT_COLUMNS),
            )
            for name, (rows, columns) in shapes.items()
        }
        write_curvature(path, random, CurvatureRecord(adapter.digest, adapter.task))
    if tasks == 1:
        return Past.of([read_adapter(adapters[0])])
    return accumulate(adapters, folder / "wpast.safetensors").past


def seconds(
    model: PeftModel,
    inputs: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    penalty: Penalty | None,
) -> float:
    clock = _clock(model.device)
    begun = clock()
    with short_attention(inputs["input_ids"]):
        logits = model(**inputs).logits.float()  # (positions of answers, V)
    loss = logits.logsumexp(dim=-1).mean()
    if penalty is not None:
        loss = loss + 1e-9 * penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return clock() - begun


def seconds_alone(penalty: Penalty, model: PeftModel) -> float:
    clock = _clock(model.device)
    begun = clock()
    torch.autograd.backward(1e-9 * penalty())
    taken = clock() - begun
    model.zero_grad()
    return taken


def step_seconds(optimizer: torch.optim.Optimizer, model: PeftModel) -> float:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    clock = _clock(model.device)
    begun = clock()
    optimizer.step()
    taken = clock() - begun
    model.zero_grad()
    return taken


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return time.thread_time

    def after_the_last_kernel() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return after_the_last_kernel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="demo-topic")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--past-tasks", nargs="+", type=int, default=[1, 4, 15, 100])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(asked.model, device=asked.device)
    settings = TrainSettings(limit=asked.batch)
    task = load_task(asked.task, data=asked.data, limit=asked.batch)
    rows = encode_rows(base, [task], settings)
    model = attach_lora(base, settings, seed=0).train()
    pad = base.tokenizer.pad_token_id
    assert isinstance(pad, int)
    batch = Collator(pad, base.kind)(rows)
    inputs = {
        name: batch[name].to(base.device)
        for name in ("input_ids", "attention_mask", "position_ids", "logits_to_keep")
    }
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    shape = tuple(inputs["input_ids"].shape)
    print(f"{base.source}, {asked.task}, batch {shape}, {base.device}, 1 thread, {versions()}")
    for tasks in asked.past_tasks:
        with tempfile.TemporaryDirectory(prefix="ella-step-") as folder:
            past = synthetic_past(model, tasks, Path(folder))
            penalties: dict[str, Penalty | None] = {
                "without": None,
                "sum": EllaPenalty(model, past),
                "curvature": CurvaturePenalty(model, past),
            }
            turned = torch.optim.AdamW(trained, lr=1e-6)
            PastBasis(model, past).attach(turned)
            steps = {"adamw": optimizer, "adamw-past": turned}
            taken: dict[str, list[float]] = {name: [] for name in penalties}
            alone: dict[str, list[float]] = {name: [] for name in (*penalties, *steps)}
            for _ in range(asked.rounds + 1):
                for name, penalty in penalties.items():
                    taken[name].append(seconds(model, inputs, optimizer, penalty))
                for name, penalty in penalties.items():
                    if penalty is not None:
                        seconds(model, inputs, optimizer, None)
                        alone[name].append(seconds_alone(penalty, model))
                for name, one in steps.items():
                    seconds(model, inputs, optimizer, None)
                    alone[name].append(step_seconds(one, model))
        # The first step of each also pays for memory and code.
        medians = {name: statistics.median(times[1:]) for name, times in taken.items()}
        shown = ", ".join(
            f"{name} {one:.3f} s ({one / medians['without']:.3f} x)"
            for name, one in medians.items()
        )
        print(f"{tasks:>4} past tasks: {shown}; medians of {asked.rounds}", flush=True)
        parts = {name: statistics.median(times[1:]) for name, times in alone.items() if times}
        shown = ", ".join(
            f"{name} {1e3 * one:.0f} ms ({one / medians['without']:.1%})"
            for name, one in parts.items()
        )
        print(f"{'':>4} alone: {shown}", flush=True)


if __name__ == "__main__":
    main()
