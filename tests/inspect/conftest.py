"""Adapters and runs of two small modules, made here as PEFT lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ella_cli.past import Past, accumulate, read_past

MODULES = {
    "model.layers.0.self_attn.q_proj": (24, 20),
    "model.layers.0.self_attn.v_proj": (12, 20),
    "model.layers.1.self_attn.q_proj": (24, 20),
    "model.layers.1.self_attn.v_proj": (12, 20),
}
RANK, ALPHA = 2, 6
SCALE = ALPHA / RANK

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
WriteAdapter = Callable[..., Path]


def random_factors(
    seed: int, modules: Mapping[str, tuple[int, int]] = MODULES, *, rank: int = RANK
) -> Factors:
    """B (M, R) and A (R, N) a module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            0.1 * torch.randn(rows, rank, generator=generator),
            torch.randn(rank, columns, generator=generator),
        )
        for name, (rows, columns) in modules.items()
    }


def updates_of(factors: Factors) -> dict[str, torch.Tensor]:
    """ΔW a module, multiplied out in f64: the other route."""
    return {name: SCALE * (b.double() @ a.double()) for name, (b, a) in factors.items()}


def save_adapter(folder: Path, factors: Factors, manifest: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (b, a) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny",
        "r": next(iter(factors.values()))[1].shape[0],
        "lora_alpha": SCALE * next(iter(factors.values()))[1].shape[0],
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if manifest is not None:
        (folder / "ella.json").write_text(json.dumps({"format": 1, **manifest}))
    return folder


def manifest_of(
    task: str, earlier: Sequence[str] = (), *, lam: float = 100.0, method: str = "ella"
) -> dict[str, Any]:
    return {
        "task": task,
        "order_index": len(earlier),
        "method": method,
        "lambda": lam,
        "seed": 0,
        "rank": RANK,
        "scale": SCALE,
        "base": {"model": "tiny", "fingerprint": "0123456789abcdef"},
        "data": {"fingerprint": "rows", "train_rows": 32},
        "past": {"digest": None, "tasks": list(earlier)},
        "update_norm": 1.0,
        "update_norms": {},
        "curves": {"step": [1], "ce": [1.0], "penalty": [0.0], "weighted_penalty": [0.0],
                   "update_norm": [1.0]},
        "seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    """Gives a function of task, seed (or factors) and earlier tasks -> the adapter's folder."""

    def write(
        task: str, seed: int = 0, earlier: Sequence[str] = (), *, factors: Factors | None = None,
        lam: float = 100.0,
    ) -> Path:  # fmt: skip
        chosen = random_factors(seed) if factors is None else factors
        return save_adapter(tmp_path / task, chosen, manifest_of(task, earlier, lam=lam))

    return write


@pytest.fixture
def three_tasks(write_adapter: WriteAdapter) -> list[Path]:
    names = ("dbpedia", "amazon", "yahoo")
    return [write_adapter(name, seed, names[:seed]) for seed, name in enumerate(names)]


@pytest.fixture
def factored(three_tasks: list[Path], tmp_path: Path) -> Past:
    path = tmp_path / "factored.safetensors"
    accumulate(three_tasks, path, store="factored")
    return read_past(path)


@pytest.fixture
def dense(three_tasks: list[Path], tmp_path: Path) -> Past:
    path = tmp_path / "dense.safetensors"
    accumulate(three_tasks, path, store="dense")
    return read_past(path)


@pytest.fixture
def summed() -> dict[str, torch.Tensor]:
    """W_past of the three tasks a module, f64."""
    parts = [updates_of(random_factors(seed)) for seed in range(3)]
    return {name: torch.stack([part[name] for part in parts]).sum(dim=0) for name in MODULES}


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Gives a function of name, method, λ and matrix -> a scored run of as many tasks."""

    def write(
        name: str,
        matrix: Sequence[Sequence[float]],
        *,
        method: str = "ella",
        lam: float = 100.0,
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / name
        order = [f"task{i}" for i in range(len(matrix))]
        for i, task in enumerate(order):
            stage = f"{i + 1:02d}-{task}"
            manifest = manifest_of(task, order[:i], lam=lam, method=method)
            save_adapter(folder / "stages" / stage, random_factors(10 * seed + i), manifest)
            (folder / "scores" / stage).mkdir(parents=True)
            for other in order:
                (folder / "scores" / stage / f"{other}.json").write_text("{}")
        (folder / "run.json").write_text(
            json.dumps({"order": order, "method": method, "command": "ella run",
                        "base": {"model": "tiny", "fingerprint": "0123456789abcdef"}})
        )  # fmt: skip
        (folder / "results.json").write_text(
            json.dumps({"order": order, "matrix": [list(row) for row in matrix],
                        "base": None, "single": None, "method": method, "lambda": lam})
        )  # fmt: skip
        stages = sorted((folder / "stages").iterdir())
        accumulate(stages, folder / "wpast.safetensors")
        return folder

    return write
