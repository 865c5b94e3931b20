"""Does an exported past answer in plain transformers and peft as `ella eval` says it does?

    python -m benchmarks.export_answers runs/o1/stages/* --data DATA --rows 25

Takes the second task out of the past again and compares with never having added it; prints what
each store takes; then exports the sum as a PEFT adapter and compares its greedy answers with those
`ella eval` gives for the last stage, on the first test rows of each task. The model runs in float32
on the CPU. A merged model (--merged) is rounded to the base's own type, so a few answers may turn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import EvaluateSettings
from ella_cli.evaluate.grid import Stage, evaluate_grid
from ella_cli.model.base import load_base
from ella_cli.model.source import local_folder
from ella_cli.past import Past, accumulate
from ella_cli.past.export import export_adapter, export_merged
from ella_cli.tasks import Task, build_prompt, load_task
from ella_cli.tasks.batches import Encoder
from ella_cli.training.manifest import versions

BATCH = 16
STORES: tuple[Literal["factored", "dense"], ...] = ("factored", "dense")


def plain_answers(model: torch.nn.Module, folder: Path, task: Task) -> list[str]:
    """Greedy answers to the same token ids, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoder = Encoder(tokenizer, "decoder")
    prompts = [encoder.prompt(build_prompt(task.spec, row, header=False)) for row in task.test]
    # `ella eval` stops four tokens after the longest label.
    length = max(len(encoder.answer(label)) for label in task.spec.labels) + 4
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer.pad({"input_ids": prompts[start : start + BATCH]}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(  # type: ignore[operator]
                **batch,
                max_new_tokens=length,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def our_answers(
    adapters: Sequence[Adapter], tasks: Sequence[Task], model: str, folder: Path
) -> list[tuple[str, ...]]:
    settings = EvaluateSettings(model=model, dtype="float32", device="cpu")
    stage = Stage("last", tuple(adapters))
    base = load_base(model, dtype="float32", device="cpu")
    (row,) = evaluate_grid(base, [stage], tasks, settings, folder)
    return [cell.predictions for cell in row if cell is not None]


def largest_difference(one: Past, other: Past) -> tuple[float, float]:
    """Of W_past: max |difference| over all modules, and of that over the largest |entry|."""
    pairs = [(one.delta(name), other.delta(name)) for name in one.names]
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    return largest, largest / max(float(a.abs().max()) for a, _ in pairs)


def compare_answers(
    adapters: Sequence[Adapter],
    past: Past,
    tasks: Sequence[Task],
    model: str,
    work: Path,
    *,
    merged: bool,
) -> None:
    folder = local_folder(model)
    export_adapter(past, work / "sum")
    ours = our_answers(adapters, tasks, model, work / "scores")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with_sum = PeftModel.from_pretrained(loaded, str(work / "sum"))
    with_sum.train(False)
    for task, expected in zip(tasks, ours, strict=True):
        found = plain_answers(with_sum, folder, task)
        equal = sum(a == b for a, b in zip(found, expected, strict=True))
        print(f"{task.spec.name}: peft {equal} of {len(expected)} answers equal", flush=True)
    if not merged:
        return
    export_merged(past, folder, work / "merged")
    plain = AutoModelForCausalLM.from_pretrained(work / "merged", dtype=torch.float32)
    for task, expected in zip(tasks, ours, strict=True):
        found = plain_answers(plain, work / "merged", task)
        equal = sum(a == b for a, b in zip(found, expected, strict=True))
        print(f"{task.spec.name}: merged {equal} of {len(expected)} answers equal", flush=True)


def compare_dropped(folders: list[Path], work: Path) -> None:
    others = [folder for index, folder in enumerate(folders) if index != 1]
    for store in STORES:
        path = work / f"dropped-{store}.safetensors"
        name = accumulate(folders, path, store=store).past.tasks[1].name
        dropped = accumulate([], path, drop=[name], store=store).past
        without = accumulate(others, work / f"others-{store}.safetensors", store=store).past
        largest, relative = largest_difference(dropped, without)
        print(
            f"{store}, {name} dropped against never added: max difference {largest:.3g}, "
            f"{relative:.2g} of the largest entry"
        )


def print_sizes(folders: list[Path], work: Path) -> None:
    print("| tasks | factored | dense | an adapter folder a task |\n|--:|--:|--:|--:|")
    apart = [sum(f.stat().st_size for f in one.glob("adapter_*")) for one in folders]
    for count in range(1, len(folders) + 1):
        sizes = [
            accumulate(folders[:count], work / f"{count}-{store}", store=store).file_bytes
            for store in STORES
        ]
        words = [f"{size / 1e6:.2f} MB" for size in (*sizes, sum(apart[:count]))]
        print(f"| {count} | {' | '.join(words)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=25, help="test rows a task")
    parser.add_argument("--tasks", help="answered, by commas; the adapters' own by default")
    parser.add_argument("--merged", action="store_true", help="answers of the merged model too")
    parser.add_argument("--no-answers", action="store_true", help="only sums and sizes")
    asked = parser.parse_args()
    adapters = [read_adapter(folder) for folder in asked.adapters]
    print(versions())
    with tempfile.TemporaryDirectory(prefix="ella-export-") as name:
        work = Path(name)
        past = accumulate(asked.adapters, work / "wpast.safetensors", store="factored").past
        compare_dropped(asked.adapters, work)
        print_sizes(asked.adapters, work)
        if not asked.no_answers:
            names = asked.tasks.split(",") if asked.tasks else [one.task for one in adapters]
            tasks = [load_task(name, data=asked.data, limit_test=asked.rows) for name in names]
            compare_answers(adapters, past, tasks, asked.model, work, merged=asked.merged)


if __name__ == "__main__":
    main()
