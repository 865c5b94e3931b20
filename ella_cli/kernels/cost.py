"""What each form costs, and so which one `auto` takes: bytes and flops over a device's rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ella_cli.kernels.form import FUSED, GRAM, TILED


@dataclass(frozen=True)
class Rates:
    """A device's speeds, as the penalty meets them.

    bytes_per_second: streaming read of W_past.
    flops_per_second: products of skinny matrices (one side of R).
    block_bytes_per_second: element-wise work on a block that is already in cache.
    call_seconds: one library call or kernel launch.
    """

    bytes_per_second: float
    flops_per_second: float
    block_bytes_per_second: float
    call_seconds: float


CPU = Rates(4e10, 2e11, 6e10, 8e-6)
CUDA = Rates(2.5e12, 5e13, 2e13, 6e-6)


@dataclass(frozen=True)
class Work:
    """One module's penalty: its shape (M, N), LoRA rank, and the past's rank (None if dense)."""

    rows: int
    columns: int
    rank: int
    past_rank: int | None
    past_bytes: int = 4


def rates_of(device: torch.device) -> Rates:
    return CUDA if device.type == "cuda" else CPU


def cheapest(work: Work, rates: Rates, *, among: Sequence[str], calls: float = math.inf) -> str:
    """The form of least expected seconds a call, what is prepared once spread over `calls`."""
    return min(
        among,
        key=lambda form: seconds(form, work, rates) + preparation(form, work, rates) / calls,
    )


def seconds(form: str, work: Work, rates: Rates) -> float:
    """Expected seconds of one call, loss and both gradients."""
    elements = work.rows * work.columns
    past_rank = work.past_rank or 0
    if form == GRAM:
        pairs = work.rank * (work.rank + 1) // 2 * past_rank * (past_rank + 1) // 2
        return (
            4 * (work.rows + work.columns) * pairs / rates.flops_per_second
            + 12 * rates.call_seconds
        )
    flops = 6 * elements * work.rank
    moved = elements * work.past_bytes
    if form == TILED:
        flops += 2 * elements * past_rank
        moved = 0
    return (
        flops / rates.flops_per_second
        + moved / rates.bytes_per_second
        + 8 * elements / rates.block_bytes_per_second
        + 8 * rates.call_seconds
    )


def preparation(form: str, work: Work, rates: Rates) -> float:
    """Seconds spent once a task: W_past multiplied out, or the pair products."""
    past_rank = work.past_rank or 0
    if form == FUSED:
        elements = work.rows * work.columns
        return (
            2 * elements * past_rank / rates.flops_per_second
            + 8 * elements / rates.bytes_per_second
        )
    if form == GRAM:
        pairs = past_rank * (past_rank + 1) // 2
        return 12 * (work.rows + work.columns) * pairs / rates.bytes_per_second
    return 0.0
