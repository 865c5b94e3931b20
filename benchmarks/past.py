"""How fast and how lean a past is kept: Llama-3.1-8B and T5-large shapes, synthetic adapters.

    python benchmarks/past.py                 everything: tests first, then sizes, dense, growth
    python benchmarks/past.py dense           15 adapters at Llama-3.1-8B q and v into a dense file
    python benchmarks/past.py growth          100 tasks at T5-large q and v, one by one
    python benchmarks/past.py sizes           bytes on disk: dense, factored, an adapter a task

Needs about 10 GB under the temporary folder and removes them again. Times are compared with a
plain copy of the bytes that must be read and written, fsync included, made in the same run.
Results go to benchmarks/results/past.json and, for growth, past-growth.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from ella_cli.files import write_json
from ella_cli.past import accumulate

RANK = 8
RESULTS = Path(__file__).parent / "results"
STORES: tuple[Literal["factored", "dense"], ...] = ("factored", "dense")

# One process per measurement: its peak RSS is then that of this one accumulation.
_MEASURED = """
import json, sys, time
from pathlib import Path
def peak():
    # Not ru_maxrss: a child starts with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
interpreter = peak()
from ella_cli.past import accumulate
imported = peak()
began = time.monotonic()
accumulate([Path(p) for p in sys.argv[3:]], Path(sys.argv[1]), store=sys.argv[2])
print(json.dumps({
    "seconds": time.monotonic() - began, "interpreter": interpreter, "imported": imported,
    "peak": peak(),
}))
"""


def llama_8b() -> dict[str, tuple[int, int]]:
    """q_proj and v_proj of Llama-3.1-8B."""
    return {
        f"model.layers.{layer}.self_attn.{name}": (rows, 4096)
        for layer in range(32)
        for name, rows in (("q_proj", 4096), ("v_proj", 1024))
    }


def t5_large() -> dict[str, tuple[int, int]]:
    """Q and v of all attention of T5-large: 24 + 24 · 2 blocks."""
    places = [f"encoder.block.{i}.layer.0.SelfAttention" for i in range(24)]
    places += [f"decoder.block.{i}.layer.0.SelfAttention" for i in range(24)]
    places += [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(24)]
    return {f"{place}.{name}": (1024, 1024) for place in places for name in ("q", "v")}


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_B.weight"] = torch.rand(rows, RANK, generator=generator)
        tensors[f"{key}.lora_A.weight"] = torch.rand(RANK, columns, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def measured(path: Path, store: str, adapters: list[Path]) -> dict[str, float]:
    """One accumulation in a process of its own."""
    command = [sys.executable, "-c", _MEASURED, str(path), store, *map(str, adapters)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def copy_seconds(sources: list[Path], target: Path, size: int) -> float:
    """Reads `sources` and writes `size` bytes, with fsync: nothing else."""
    began = time.monotonic()
    block = memoryview(os.urandom(1 << 23))
    for source in sources:
        with source.open("rb", buffering=0) as file:
            while file.readinto(bytearray(1 << 23)):
                pass
    with target.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(block[: min(left, len(block))])
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    target.unlink()
    return seconds


def weights_of(folders: list[Path]) -> list[Path]:
    return [folder / "adapter_model.safetensors" for folder in folders]


def dense(work: Path, rounds: int = 3) -> dict[str, Any]:
    """15 adapters into a new dense file, and a 16th into that, against plain copies."""
    folders = [write_adapter(work / f"a{i}", llama_8b(), i) for i in range(16)]
    path, rows = work / "w.safetensors", []
    for _ in range(rounds):
        path.unlink(missing_ok=True)
        new = measured(path, "dense", folders[:15])
        size = path.stat().st_size
        new["copy"] = copy_seconds(weights_of(folders[:15]), work / "copy", size)
        more = measured(path, "dense", folders[15:])
        more["copy"] = copy_seconds([*weights_of(folders[15:]), path], work / "copy", size)
        rows.append((new, more))
    table = {}
    for index, label in enumerate(("15 adapters, new file", "1 adapter more")):
        runs = [row[index] for row in rows]
        table[label] = {
            "seconds": statistics.median(run["seconds"] for run in runs),
            "copy_seconds": statistics.median(run["copy"] for run in runs),
            "ratio": statistics.median(run["seconds"] / run["copy"] for run in runs),
            "ratios": [run["seconds"] / run["copy"] for run in runs],
            "peak_mb_above_interpreter": max(r["peak"] - r["interpreter"] for r in runs) / 1e6,
            "peak_mb_above_imports": max(r["peak"] - r["imported"] for r in runs) / 1e6,
        }
        print(label, json.dumps(table[label], indent=2))
    return table | {"file_bytes": path.stat().st_size}


def growth(work: Path, tasks: int = 100) -> dict[str, Any]:
    """Seconds and bytes of each added task, store auto; one adapter on disk at a time."""
    path = work / "w.safetensors"
    rows = []
    for index in range(tasks):
        folder = write_adapter(work / f"a{index}", t5_large(), index)
        # Pages of the adapter still to be written would be paid for by our own fsync.
        os.sync()
        done = accumulate([folder], path)
        rows.append({"task": index + 1, "store": done.past.store, "seconds": done.seconds,
                     "bytes": done.file_bytes})  # fmt: skip
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        if index % 10 == 9:
            print(json.dumps(rows[-1]), flush=True)
    _plot(rows)
    return {"rows": rows}


def sizes(work: Path) -> dict[str, Any]:
    """Bytes on disk after T tasks; an adapter a task is what O-LoRA keeps, all A and all B."""
    table = []
    for model, shapes in (("T5-large", t5_large()), ("Llama-3.1-8B", llama_8b())):
        folder = work / model
        folders = [write_adapter(folder / f"a{i}", shapes, i) for i in range(15)]
        apart = [sum(f.stat().st_size for f in one.iterdir()) for one in folders]
        for tasks in (1, 4, 8, 15):
            files: dict[str, int] = {}
            for store in STORES:
                path = folder / f"{store}-{tasks}.safetensors"
                files[store] = accumulate(folders[:tasks], path, store=store).file_bytes
                path.unlink()
            row = {"model": model, "tasks": tasks, **files, "adapters": sum(apart[:tasks])}
            print(json.dumps(row), flush=True)
            table.append(row)
    return {"rows": table}


def _plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5))
    for store, colour in (("factored", "#2a6f97"), ("dense", "#bc6c25")):
        shown = [row for row in rows if row["store"] == store]
        tasks = [row["task"] for row in shown]
        upper.plot(tasks, [row["bytes"] / 1e6 for row in shown], ".", color=colour, label=store)
        lower.plot(tasks, [row["seconds"] for row in shown], ".", color=colour, label=store)
    upper.set_ylabel("file, MB")
    lower.set_ylabel("adding the task, s")
    lower.set_xlabel("tasks in the past (T5-large q and v, rank 8, store auto)")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "past-growth.svg", metadata={"Date": None})


def _on_green() -> None:
    """Speed is claimed only where the tests pass."""
    tests = ["tests/past", "tests/adapter", "tests/test_adapter.py"]
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    subprocess.run(command, check=True, cwd=root)


def _setting() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _work_folders() -> Iterator[Path]:
    while True:
        with tempfile.TemporaryDirectory(prefix="ella-past-") as name:
            yield Path(name)


def main() -> None:
    benchmarks = {"dense": dense, "growth": growth, "sizes": sizes}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("which", nargs="*", choices=[*benchmarks, []], default=[])
    chosen: list[str] = parser.parse_args().which or list(benchmarks)
    _on_green()
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "past.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name, work in zip(chosen, _work_folders(), strict=False):
        results[name] = {"setting": _setting(), **benchmarks[name](work)}
        write_json(file, results)


if __name__ == "__main__":
    main()
