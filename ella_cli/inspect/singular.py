"""Singular values and vectors of a past, without a dense decomposition where one can be avoided.

- factors: QR of P and of Qᵀ, then the SVD of the small product of their triangles; exact.
- dense, of known low rank: a range finder (Halko, Martinsson, Tropp 2011) that asks for every
  direction the rank allows and some more; what it misses is measured and returned.
- dense, rank unknown or near full: the SVD itself.
All in f64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ella_cli.inspect.tiles import row_blocks
from ella_cli.kernels import Factors
from ella_cli.past.compaction import singular

Method = Literal["factors", "range finder", "dense"]

# More directions than the rank has, so that the range is found whole.
_OVERSAMPLING = 16
# Singular values below this share of the largest are rounding of the f32 that was stored.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Svd:
    """W_past = left · diag(values) · right; f64, values descending, only those above rounding.

    `missed` is ‖W_past − left · diag(values) · right‖_F / ‖W_past‖_F, 0 where nothing was left out
    but rounding.
    """

    left: Tensor  # (M, rank)
    values: Tensor  # (rank,)
    right: Tensor  # (rank, N)
    method: Method
    missed: float


def decompose(past: Tensor | Factors, *, rank: int | None = None, rounded: bool = False) -> Svd:
    """The SVD of W_past.

    Args:
        rank: what its tasks' ranks add up to, where that is known.
        rounded: a copy in bf16; of its values those beyond `rank` are rounding, however large.
    """
    most = rank if rounded else None
    if isinstance(past, Factors):
        return _of_factors(past)
    if rank is not None and 2 * (rank + _OVERSAMPLING) < min(past.shape):
        return _by_range(past, rank, most)
    left, values, right = torch.linalg.svd(past.double(), full_matrices=False)
    return _trimmed(left, values, right, "dense", 0.0, most)


def effective_rank(values: Tensor) -> float:
    """The exponential of the entropy of σ / Σσ (Roy and Vetterli 2007); 0 for a zero matrix."""
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return math.exp(-float((shares * shares.log()).sum()))


def stable_rank(values: Tensor) -> float:
    """‖W‖²_F / σ₁²; 0 for a zero matrix."""
    if len(values) == 0 or float(values[0]) == 0:
        return 0.0
    return float(values.square().sum() / values[0].square())


def _of_factors(past: Factors) -> Svd:
    left, values, right = singular(past)
    return _trimmed(left, values, right.T, "factors", 0.0)


def _by_range(past: Tensor, rank: int, most: int | None) -> Svd:
    # A fixed generator: equal files give equal figures.
    generator = torch.Generator().manual_seed(0)
    width = rank + _OVERSAMPLING
    probe = torch.randn(past.shape[1], width, generator=generator, dtype=torch.float64)
    images = torch.cat([block @ probe for _, block in row_blocks(past)])  # (M, width)
    basis = torch.linalg.qr(images)[0]  # (M, width)
    small = torch.zeros(width, past.shape[1], dtype=torch.float64)
    total = 0.0
    for rows, block in row_blocks(past):
        small += basis[rows].T @ block
        total += float(block.square().sum())
    missed = 0.0
    if total > 0:
        left_out = sum(
            float((block - basis[rows] @ small).square().sum()) for rows, block in row_blocks(past)
        )
        missed = math.sqrt(left_out / total)
    left, values, right = torch.linalg.svd(small, full_matrices=False)
    return _trimmed(basis @ left, values, right, "range finder", missed, most)


def _trimmed(
    left: Tensor,
    values: Tensor,
    right: Tensor,
    method: Method,
    missed: float,
    most: int | None = None,
) -> Svd:
    largest = float(values[0]) if len(values) else 0.0
    kept = int((values[:most] > _ROUNDING * largest).sum()) if largest > 0 else 0
    return Svd(left[:, :kept], values[:kept], right[:kept], method, missed)
