"""The last task's adapter, to be trained on: for methods that carry one through all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ella_cli.adapter import Adapter
from ella_cli.config import LoraFields
from ella_cli.errors import AdapterError
from ella_cli.model.base import Base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers, lora_pair

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer


def carried_lora(base: Base, settings: LoraFields, adapter: Adapter, *, seed: int) -> PeftModel:
    """`base.model` with the trained LoRA pair of `adapter` on it, trainable further.

    Raises:
        AdapterError: it has other modules, ranks or scales than `settings` ask for.
    """
    model = attach_lora(base, settings, seed=seed)
    try:
        layers = lora_layers(model)
        _check_layout(layers, adapter)
        with torch.no_grad():
            for name, layer in layers.items():
                b, a, _ = lora_pair(layer)
                update = adapter.update(name)
                b.copy_(update.b.view_as(b))
                a.copy_(update.a.view_as(a))
    except BaseException:
        detach_lora(model)
        raise
    return model


def _check_layout(layers: Mapping[str, LoraLayer], adapter: Adapter) -> None:
    other = sorted(set(layers) ^ set(adapter.names))
    if other:
        raise AdapterError(
            f"{adapter.path} "
            + ("has no" if other[0] in layers else "has an")
            + f" update for {other[0]}, one of {len(other)} modules that differ",
            hint="train on with the --target-modules it was made with",
        )
    for name, layer in layers.items():
        b, a, scale = lora_pair(layer)
        wanted = (b.shape[0], a[0].numel(), a.shape[0], scale)
        got = (*adapter.shape(name), adapter.rank(name), adapter.sources[name].scale)
        if got != wanted:
            raise AdapterError(
                f"{adapter.path}: {name} is {_layout(*got)}, asked for is {_layout(*wanted)}",
                hint="train on with the --lora-rank, --lora-alpha and --model it was made with",
            )


def _layout(rows: int, columns: int, rank: int, scale: float) -> str:
    return f"{rows} × {columns} of rank {rank} and scale {scale:g}"
