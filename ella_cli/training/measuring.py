"""A trained task's curvature: measured on a few of its rows, and written beside its adapter."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature import write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.curvature import SHRINKAGE, Measured, measure_curvature
from ella_cli.model.base import Base
from ella_cli.progress import Progress

_BATCH = 8


def measure_task(
    base: Base,
    model: nn.Module,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    count: int,
    rank: int,
    seed: int,
    name: str,
    progress: Progress,
) -> tuple[Measured, dict[str, Any]]:
    """The curvature over at most `count` rows, drawn by `seed`, and what a manifest says of it.

    Raises:
        NonFiniteError: a module's curvature is infinite or NaN.
    """
    started = time.monotonic()
    chosen = random.Random(seed).sample(list(rows), min(count, len(rows)))
    advance = progress.begin(f"measure {name}", 2 * -(-len(chosen) // _BATCH))
    measured = measure_curvature(
        base, model, chosen, rank=rank, seed=seed, batch_size=_BATCH, advance=advance
    )
    worst = [max(pair[side] for pair in measured.dropped.values()) for side in (0, 1)]
    facts = {
        "rows": measured.rows,
        "tokens": measured.tokens,
        "rank": rank,
        "largest_dropped_share": {"g": worst[0], "c": worst[1]},
        "held_by_directions": statistics.fmean(measured.held.values()) if measured.held else 0.0,
        "seconds": round(time.monotonic() - started, 2),
    }
    return measured, facts


def write_measured(folder: Path, measured: Measured, manifest: Mapping[str, Any]) -> None:
    """Puts it beside the adapter in `folder`, with its provenance.

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
        seed=manifest["seed"],
        shrinkage=SHRINKAGE,
        dropped=measured.dropped,
    )
    write_curvature(folder, measured.modules, record)
