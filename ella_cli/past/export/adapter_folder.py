"""W_past as one standard PEFT LoRA adapter of scale 1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ella_cli.adapter import Layer
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import PastError, SettingsError
from ella_cli.files import write_json
from ella_cli.kernels import Factors
from ella_cli.past.compaction import cut, singular
from ella_cli.past.export.card import write_card
from ella_cli.past.export.exported import Exported, ModuleError, empty_folder
from ella_cli.past.factored import FactoredStore
from ella_cli.past.past import Past

# Of the randomised SVD of a dense matrix: further directions and passes beyond the rank wanted.
_OVERSAMPLING = 16
_POWER_PASSES = 4


def export_adapter(
    past: Past, folder: Path, *, max_rank: int | None = None, base: str | None = None
) -> Exported:
    """Writes `folder` as peft's save_pretrained would; the base model is not needed.

    Args:
        past: factored, or dense with `max_rank`.
        folder: must not hold anything yet.
        max_rank: cuts each module to its best approximation of this rank, and states the error;
            without it the sum is exact, of rank Σ R_i.
        base: what the adapter's config names as base model, if not what the past says.

    Raises:
        PastError: a dense past without `max_rank`, or no task in it.
        SettingsError: a rank below 1.
        StorageError: the folder is not empty or cannot be written.
    """
    _check(past, max_rank)
    ranks = {name: _rank(past, name, max_rank) for name in past.names}
    layout: dict[str, Entry] = {}
    for name in past.names:
        layout |= _entries(name, past.shape(name), past.layer(name), ranks[name])
    base = past.base.model if base is None else base
    with empty_folder(folder) as temporary:
        modules = []
        metadata = {"format": "pt"}
        with TensorFileWriter(temporary / "adapter_model.safetensors", layout, metadata) as writer:
            for name in past.names:
                factors, error = _factors(past, name, ranks[name])
                writer.write(factors.p.contiguous())
                writer.write(factors.q.contiguous())
                modules.append(ModuleError(name, factors.rank, error))
            writer.finish(metadata)
        write_json(temporary / "adapter_config.json", _config(past, ranks, base))
        exactness = _exactness(modules)
        write_card(temporary, past, "adapter", exactness, base)
    shown = tuple(modules) if any(module.relative for module in modules) else ()
    return Exported(folder, "adapter", exactness, shown)


def _check(past: Past, max_rank: int | None) -> None:
    if not past.names:
        raise PastError(f"{past.path} holds no task", hint="accumulate an adapter first")
    if max_rank is not None and max_rank < 1:
        raise SettingsError(f"--max-rank is {max_rank}", hint="give a rank of 1 or more")
    if max_rank is None and past.store == "dense":
        raise PastError(
            f"{past.path} is dense: as an exact adapter it would have full rank",
            hint="give --max-rank, or export it with --as merged",
        )


def _rank(past: Past, name: str, max_rank: int | None) -> int:
    store = past.contents
    if isinstance(store, FactoredStore):
        rank = store.rank(name)
        if max_rank is None or rank <= max_rank:
            return rank
    assert max_rank is not None
    return min(max_rank, *past.shape(name))


def _factors(past: Past, name: str, rank: int) -> tuple[Factors, float]:
    """Factors of `rank` and their relative error."""
    store = past.contents
    if not isinstance(store, FactoredStore):
        return _of_matrix(past.delta(name), rank)
    factors = store.factors(name, (1.0,) * len(store.blocks))
    if factors.rank == rank:
        return factors, 0.0
    best, missed = cut(*singular(factors), rank)
    return best, math.sqrt(missed)


def _of_matrix(delta: Tensor, rank: int) -> tuple[Factors, float]:
    # Its own generator: the same past gives the same adapter, and nobody's seed is moved.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, values, v = torch.svd_lowrank(
            delta, q=min(rank + _OVERSAMPLING, *delta.shape), niter=_POWER_PASSES
        )
    best, _ = cut(u, values, v, rank)
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    rest = torch.addmm(delta, best.p, best.q, alpha=-1)  # (M, N) f32
    return best, float(torch.linalg.vector_norm(rest, dtype=torch.float64)) / norm if norm else 0.0


def _entries(name: str, shape: tuple[int, int], layer: Layer, rank: int) -> dict[str, Entry]:
    """B and A under peft's names, in peft's shapes."""
    rows, columns = shape
    prefix = f"base_model.model.{name}."
    if layer.kind == "embedding":
        return {
            prefix + "lora_embedding_B": Entry("F32", (rows, rank)),
            prefix + "lora_embedding_A": Entry("F32", (rank, columns)),
        }
    kernel = layer.kernel
    inputs = columns // math.prod(kernel)
    return {
        prefix + "lora_B.weight": Entry("F32", (rows, rank, *(1 for _ in kernel))),
        prefix + "lora_A.weight": Entry("F32", (rank, inputs, *kernel)),
    }


def _config(past: Past, ranks: Mapping[str, int], base: str) -> dict[str, Any]:
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # A pattern's key also names modules that end in it: longer names first, and all or none.
    uneven = dict(sorted(ranks.items(), key=lambda item: -len(item[0])))
    pattern = uneven if set(ranks.values()) != {usual} else {}
    return {
        "peft_type": "LORA",
        "task_type": past.base.task_type,
        "base_model_name_or_path": base or None,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": past.base.fan_in_fan_out,
        "init_lora_weights": True,
        "modules_to_save": None,
        "target_modules": list(ranks),
        "inference_mode": True,
    }


def _exactness(modules: list[ModuleError]) -> str:
    worst = max(modules, key=lambda module: module.relative)
    rank = max(module.rank for module in modules)
    if not worst.relative:
        return f"the sum itself, to fp32 rounding, rank {rank}"
    return (
        f"cut to rank {rank}; relative error ‖W_past − BA‖ / ‖W_past‖ up to "
        f"{worst.relative:.2g} ({worst.name})"
    )
