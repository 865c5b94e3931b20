"""What each form costs, by which `auto` chooses: bytes, flops and calls over a device's rates.

Per call of a module with M · N = E elements, pairs(n) = n (n + 1) / 2, and e bytes an element:

    fused    E · (6 R / flops + e / stream + block)
    tiled    E · ((6 R + 2 R_past) / flops + rebuild + block)
    gram     (M + N) · (4 pairs(R) pairs(R_past) / pair_flops + R² · fold
                        + 8 pairs(R_past) / stream)

and the library calls of each, which modules of one shape share where they are stacked. Only
ratios decide, so a machine twice as fast chooses alike. docs/method.md derives the counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ella_cli.kernels.form import FUSED, GRAM
from ella_cli.kernels.schedule import SHORTEST_RANK


@dataclass(frozen=True)
class Rates:
    """A device's speeds, as the penalty meets them."""

    # Products of a skinny with a wide matrix, R or R_past on the short side.
    flops: float
    # The Gram form's products: short and wide against wide and short.
    pair_flops: float
    # Bytes a second of W_past from memory.
    stream: float
    # Seconds an element of X = (B A) ⊙ W and D = X ⊙ W, while the block is in cache.
    block: float
    # Seconds an element of a rebuilt block is written and read again.
    rebuild: float
    # Seconds an element of making pair products and folding their gradient.
    fold: float
    # Seconds a library call or a launch.
    call: float
    # Whether all modules of one form share their launches.
    one_launch: bool


# Measured on one core of a Xeon with AVX-512 and AMX (model 167, 2 MB L2, 2.6 GHz), torch 2.13,
# by processor time, over M, N of 192 to 4096, R of 4 to 64, R_past of 8 to 400.
CPU = Rates(1.7e11, 1.5e11, 1.5e10, 7.8e-10, 3e-10, 1.5e-9, 5e-6, one_launch=False)

# Fitted to an H100 (torch 2.11, Triton 3.6, f32 products; q and v of Llama-3.1-8B and SmolLM2, R of
# 8, R_past of 8 to 120; a bf16 past takes a third to a half). A call is what Python and the launch
# take there: the host is what limits.
CUDA = Rates(2.3e13, 7e12, 2.4e12, 0.0, 1e-11, 4e-12, 4e-5, one_launch=True)


@dataclass(frozen=True)
class Work:
    """One module's penalty: (M, N), R, the past's rank, and how many modules are just alike."""

    rows: int
    columns: int
    rank: int
    past_rank: int
    alike: int = 1
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
    rank, past_rank = work.rank, work.past_rank
    if form == GRAM:
        an_element = (
            4 * _pairs(rank) * _pairs(past_rank) / rates.pair_flops
            + rank**2 * rates.fold
            + 8 * _pairs(past_rank) / rates.stream
        )
        return (work.rows + work.columns) * an_element + (43 + 6 * rank) * rates.call / work.alike
    padded = max(SHORTEST_RANK, rank) if rates.one_launch else rank
    an_element = rates.block + 6 * padded / rates.flops
    if form == FUSED:
        an_element += work.past_bytes / rates.stream
    else:
        an_element += rates.rebuild + 2 * past_rank / rates.flops
    launches = 8 * rates.call / (work.alike if rates.one_launch else 1)
    return work.rows * work.columns * an_element + launches


def preparation(form: str, work: Work, rates: Rates) -> float:
    """Seconds spent once a task: W_past multiplied out, or the pair products."""
    if form == FUSED:
        elements = work.rows * work.columns
        return elements * (2 * work.past_rank / rates.flops + 8 / rates.stream)
    if form == GRAM:
        return 12 * (work.rows + work.columns) * _pairs(work.past_rank) / rates.stream
    return 0.0


def _pairs(count: int) -> int:
    return count * (count + 1) // 2
