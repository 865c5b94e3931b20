"""Adapter folders as peft writes them, of random factors, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ella_cli.kernels import Factors
from ella_cli.past import Past, accumulate, dense_file

MakeAdapter = Callable[..., Path]

# Out and in, at sizes that no tile divides, large enough that factors are the smaller store.
STORES = ("factored", "dense")

SHAPES = {"model.layers.2.q": (37, 29), "model.layers.10.q": (37, 29), "model.layers.2.v": (11, 29)}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A matrix of 29 columns is summed five rows at a time: several blocks, the last one short.
    monkeypatch.setattr(dense_file, "BLOCK_BYTES", 4 * 5 * 29)


@pytest.fixture
def make_adapter(tmp_path: Path) -> MakeAdapter:
    def make(
        name: str,
        seed: int = 0,
        *,
        shapes: Mapping[str, tuple[int, int]] = SHAPES,
        rank: int = 2,
        alpha: float = 3.0,
        base: str = "org/base",
        manifest: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
        **config: Any,
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for module, (rows, columns) in shapes.items():
            key = f"base_model.model.{module}"
            b = torch.randn(rows, rank, generator=generator).to(dtype)  # (M, R)
            a = torch.randn(rank, columns, generator=generator).to(dtype)  # (R, N)
            tensors |= {f"{key}.lora_B.weight": b, f"{key}.lora_A.weight": a}
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file(change(tensors), folder / "adapter_model.safetensors", {"format": "pt"})
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha} | config
        settings["base_model_name_or_path"] = base
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        if manifest is not None:
            (folder / "ella.json").write_text(json.dumps({"format": 1} | manifest))
        return folder

    return make


def delta_of(folder: Path, module: str) -> Tensor:
    """ΔW in f64, (M, N), by nothing of ours."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    key = f"base_model.model.{module}"
    if f"{key}.lora_A.weight" not in tensors:
        return torch.zeros(SHAPES[module], dtype=torch.float64)
    b = tensors[f"{key}.lora_B.weight"].double()
    a = tensors[f"{key}.lora_A.weight"].double()
    return config["lora_alpha"] / config["r"] * (b @ a)


def energy_of(past: Past, name: str) -> Tensor:
    operand = past.operand(name)
    return (operand.dense() if isinstance(operand, Factors) else operand).abs()


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def three(make_adapter: MakeAdapter) -> list[Path]:
    return [make_adapter(f"task{i}", i, alpha=i + 1.0) for i in range(3)]


@pytest.fixture
def two(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Two adapters whose ranks differ from task to task and from module to module."""
    from transformers import AutoConfig

    from tests.past.answers import TARGETS, train_nothing

    first = train_nothing(tiny_model, tmp_path / "one", 1)
    pattern = {TARGETS[AutoConfig.from_pretrained(tiny_model).model_type][0]: 2}
    second = train_nothing(
        tiny_model, tmp_path / "two", 2, r=1, rank_pattern=pattern, use_rslora=True
    )
    return [first, second]


@pytest.fixture
def past(two: list[Path], tmp_path: Path) -> Past:
    return accumulate(two, tmp_path / "w.safetensors", store="factored").past
