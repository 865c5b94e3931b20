"""Modules by their names, laid out as layers × kinds of module."""

from __future__ import annotations

from collections.abc import Sequence


def layer_and_kind(name: str) -> tuple[str, str]:
    """A module's layer and what it is there.

    `model.layers.3.self_attn.q_proj` gives ("3", "q_proj"), T5's
    `decoder.block.0.layer.1.EncDecAttention.q` gives ("0", "decoder.EncDecAttention.q"): the first
    number is the layer, and of the rest stays what tells modules of one layer apart.
    """
    words = name.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdecimal()]
    if not numbers:
        return "–", name
    first = numbers[0]
    tail = [word for word in words[first + 1 :] if not word.isdecimal() and word != "layer"]
    side = [words[0]] if words[0] in ("encoder", "decoder") else []
    short = tail[-1:] if tail[:-1] in (["self_attn"], ["attn"], ["attention", "self"]) else tail
    return words[first], ".".join(side + short) or name


def layer_grid(
    values: Sequence[tuple[str, float]],
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[float | None, ...], ...]]:
    """Layers, kinds, and the value of each kind in each layer (None where there is none)."""
    cells = {layer_and_kind(name): value for name, value in values}
    if len(cells) < len(values):
        # Two modules share a place: name them in full rather than lose one.
        cells = {("–", name): value for name, value in values}
    layers = list(dict.fromkeys(layer for layer, _ in cells))
    layers.sort(key=lambda layer: (not layer.isdecimal(), int(layer) if layer.isdecimal() else 0))
    kinds = tuple(dict.fromkeys(kind for _, kind in cells))
    grid = tuple(tuple(cells.get((layer, kind)) for kind in kinds) for layer in layers)
    return tuple(layers), kinds, grid
