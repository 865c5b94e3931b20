"""A trained task's curvature: measured on a few of its rows, and written beside its adapter."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.curvature import LOOKS, SHRINKAGE, Measured, importance_of, measure_curvature
from ella_cli.errors import ModelError
from ella_cli.model.base import Base
from ella_cli.progress import Progress

# Sequences a pass, where so many fit.
MOST_AT_ONCE = 8
# Below this a task's importance is spoken of.
_LITTLE = 0.25


def check_measurable(base: Base, layers: Mapping[str, Any]) -> None:
    """
    Raises:
        ModelError: a layer is no linear one, is a decoder's head, which answers alone go through
            (docs/decisions/0001), or is given all tokens in one row, as OPT's fc1: its inputs are
            not token by token of each example.
    """
    model: Any = base.model
    head = model.get_output_embeddings() if base.kind == "decoder" else None
    for name, layer in layers.items():
        inner = getattr(layer, "base_layer", layer)
        if not isinstance(inner, (nn.Linear, Conv1D)) or head in (layer, inner):
            raise _unmeasurable(name)
    for name in _given_rows_of_tokens(base, layers):
        raise _unmeasurable(name)


def _given_rows_of_tokens(base: Base, layers: Mapping[str, Any]) -> list[str]:
    """The layers whose input is no (S, T, N), found by a look at two sequences of two tokens."""
    end = base.tokenizer.eos_token_id
    batch = base.collator()([{"input_ids": [end, end], "labels": [end]}] * 2)
    found = []

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim != 3:
            found.append(name)

    handles = [
        layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()
    ]
    was_training = base.model.training
    base.model.train(False)
    try:
        with torch.no_grad():
            base.answer_logits(batch)
    finally:
        base.model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _unmeasurable(name: str) -> ModelError:
    return ModelError(
        f"{name} is adapted, whose curvature cannot be measured",
        hint="leave it out of --target-modules, or give --curvature-rows 0",
    )


def measure_task(
    base: Base,
    model: nn.Module,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    count: int,
    batch_size: int = MOST_AT_ONCE,
    rank: int,
    seed: int,
    importance: float | Literal["auto"],
    name: str,
    progress: Progress,
) -> tuple[Measured, dict[str, Any]]:
    """The curvature over at most `count` rows, drawn by `seed`, and what a manifest says of it.

    Args:
        batch_size: sequences a pass that are known to fit; more than `MOST_AT_ONCE` are not taken.
        importance: how much the task is to count; auto for as much as it was learned.

    Raises:
        NonFiniteError: a module's curvature is infinite or NaN.
    """
    started = time.monotonic()
    batch_size = min(batch_size, MOST_AT_ONCE)
    chosen = random.Random(seed).sample(list(rows), min(count, len(rows)))
    looks = LOOKS + (importance == "auto")
    advance = progress.begin(f"measure {name}", looks * -(-len(chosen) // batch_size))
    measured = measure_curvature(
        base,
        model,
        chosen,
        rank=rank,
        seed=seed,
        batch_size=batch_size,
        contrast=importance == "auto",
        advance=advance,
    )
    counts = importance
    if counts == "auto":
        counts = importance_of(measured.loss, measured.contrast)
    worst = [max(pair[side] for pair in measured.dropped.values()) for side in (0, 1)]
    facts = {
        "rows": measured.rows,
        "tokens": measured.tokens,
        "rank": rank,
        "largest_dropped_share": {"g": worst[0], "c": worst[1]},
        "contrast": measured.contrast,
        "importance": counts,
        "held_by_directions": statistics.fmean(measured.held.values()) if measured.held else 0.0,
        "seconds": round(time.monotonic() - started, 2),
    }
    return measured, facts


def note_little(name: str, facts: Mapping[str, Any], progress: Progress) -> None:
    """Says that a task hardly counts, where it does not and its contrast is why.

    Args:
        facts: of `measure_task`, with `importance` auto.
    """
    if facts["importance"] < _LITTLE:
        progress.note(
            f"{name} was hardly learned: its answers fit one another's questions nearly as well "
            f"({max(facts['contrast'], 0.0):.2g} nats an answer), so it counts "
            f"{facts['importance']:.2g} of a task that was; --importance 1 counts it in full"
        )


def write_measured(
    folder: Path, measured: Measured, manifest: Mapping[str, Any], *, seed: int
) -> CurvatureRecord:
    """Puts it beside the adapter in `folder`, with its provenance; returns the record.

    Args:
        seed: that it was measured with.

    Raises:
        StorageError: the folder cannot be written.
    """
    record = CurvatureRecord(
        adapter=read_adapter(folder).digest,
        task=manifest["task"],
        model=manifest["base"]["model"],
        fingerprint=manifest["base"]["fingerprint"],
        past=manifest["past"]["digest"] or "",
        data=manifest["data"]["fingerprint"],
        rows=measured.rows,
        tokens=measured.tokens,
        seed=seed,
        shrinkage=SHRINKAGE,
        dropped=measured.dropped,
        contrast=measured.contrast,
        importance=manifest["curvature"]["importance"],
    )
    return write_curvature(folder, measured.modules, record)
