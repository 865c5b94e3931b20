"""The Gram form: the penalty from factors alone, never touching M · N.

‖(BA) ⊙ (PQ)‖²_F = Σ_{r r' k k'} (Σ_i b_ir b_ir' p_ik p_ik') (Σ_j a_rj a_r'j q_kj q_k'j)

Both sums are symmetric in (r, r') and in (k, k'), so pairs r ≤ r' and k ≤ k' are enough:

    G = BB · PPᵀ,  H = AA · QQᵀ,   both (R(R+1)/2, R_past(R_past+1)/2)
    loss = Σ w_rr' w_kk' G ⊙ H,    w = 1 on a diagonal pair, 2 beside it
    ∂/∂b_r = 2 Σ_r' (H · w PP)_{rr'} ⊙ b_r'        ∂/∂a_r = 2 Σ_r' (w G · QQ)_{rr'} ⊙ a_r'

where a row of BB is the product of two columns of B, and so on. PP and QQ are constants of a task
and are prepared once. Modules of equal shape are one batched product.

The terms have both signs, and rounding is relative to the sum of their sizes. Where little is left
of that sum, because the update meets what past tasks have undone or undoes itself, a module is
computed as `fused_terms` does it, whose terms are squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ella_cli.kernels.fused import fused_terms
from ella_cli.kernels.operands import Factors

# Pair products above this are made anew at each call, chunk by chunk, rather than kept.
KEPT_BYTES = 1 << 30

# The least share of the terms' sizes that may be left of their sum, in roundings: in f32 1.2 %,
# which keeps the error of a loss near 1e-5.
_LEAST_LEFT = 1e5


class Pairs(NamedTuple):
    """The pairs i ≤ j of n things, (0, 0), (0, 1), … row by row, and how often each counts."""

    first: Tensor  # (n(n+1)/2,)
    second: Tensor  # (n(n+1)/2,)
    weight: Tensor  # (n(n+1)/2,), 1 on the diagonal, 2 beside it


def pairs_of(n: int, device: torch.device) -> Pairs:
    first, second = torch.triu_indices(n, n, device=device)
    weight = torch.where(first == second, 1.0, 2.0)
    return Pairs(first, second, weight)


@dataclass(frozen=True, eq=False)
class GramConstants:
    """What a task's modules of one shape prepare once: P and Q side by side, and their pairs."""

    p: Tensor  # (S, R_past, M), S modules
    q: Tensor  # (S, R_past, N)
    pairs: Pairs
    chunk: int
    kept: tuple[tuple[Tensor, Tensor], ...]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weighted pair products of P (S, chunk, M) and plain ones of Q (S, chunk, N)."""
        if self.kept:
            yield from self.kept
            return
        first, second, weight = self.pairs
        for start in range(0, first.numel(), self.chunk):
            part = slice(start, start + self.chunk)
            pp = self.p[:, first[part]] * self.p[:, second[part]]
            pp *= weight[part, None].to(pp.dtype)
            yield pp, self.q[:, first[part]] * self.q[:, second[part]]


def gram_constants(
    pasts: Sequence[Factors], dtype: torch.dtype, *, keep: bool = True
) -> GramConstants:
    """Constants for modules of equal (M, N, R_past); `keep` holds the pair products if they fit."""
    p = torch.stack([past.p.detach().to(dtype).T for past in pasts])  # (S, R_past, M)
    q = torch.stack([past.q.detach().to(dtype) for past in pasts])  # (S, R_past, N)
    pairs = pairs_of(p.shape[1], p.device)
    row_bytes = max(1, p.shape[0] * (p.shape[2] + q.shape[2]) * dtype.itemsize)
    chunk = max(1, KEPT_BYTES // row_bytes)
    constants = GramConstants(p, q, pairs, chunk, ())
    if keep and pairs.first.numel() <= chunk:
        return GramConstants(p, q, pairs, chunk, tuple(constants.chunks()))
    return constants


def gram_terms(
    bs: Sequence[Tensor], as_: Sequence[Tensor], constants: GramConstants, scales: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (S,), ∂/∂B (S, M, R) and ∂/∂A (S, R, N) of S modules of one shape."""
    dtype, device = constants.p.dtype, constants.p.device
    scale = torch.tensor(scales, dtype=dtype, device=device)[:, None, None]
    b = torch.stack([b.detach() for b in bs]).to(dtype).mT * scale  # (S, R, M)
    a = torch.stack([a.detach() for a in as_]).to(dtype)  # (S, R, N)
    bb, aa = _products(b), _products(a)  # (S, pairs of R, M), (S, pairs of R, N)
    weight = pairs_of(b.shape[1], device).weight.double()
    dbb, daa = torch.zeros_like(bb), torch.zeros_like(aa)
    value = torch.zeros(len(bs), dtype=torch.float64, device=device)  # (S,)
    apart = torch.zeros_like(value)
    for pp, qq in constants.chunks():
        g = bb @ pp.mT  # (S, pairs of R, chunk)
        h = aa @ qq.mT  # (S, pairs of R, chunk)
        terms = g * h
        value += terms.sum(dim=2, dtype=torch.float64) @ weight
        apart += terms.abs_().sum(dim=2, dtype=torch.float64) @ weight
        dbb.baddbmm_(h, pp)
        daa.baddbmm_(g, qq)
    values, dbs, das = value.to(dtype), _fold(dbb, b).mul_(scale).mT, _fold(daa, a)
    cancelled = value < _LEAST_LEFT * torch.finfo(dtype).eps * apart
    for i in cancelled.nonzero().flatten().tolist():
        past = Factors(constants.p[i].mT, constants.q[i])
        values[i], dbs[i], das[i] = fused_terms(bs[i], as_[i], past, scales[i])
    return values, dbs, das


def _products(x: Tensor) -> Tensor:
    """Of each pair r ≤ r' of rows of x (S, R, L), row by row: (S, pairs of R, L)."""
    modules, rank, length = x.shape
    products = x.new_empty(modules, rank * (rank + 1) // 2, length)
    for r, at in enumerate(_row_starts(rank)):
        torch.mul(x[:, r:], x[:, r : r + 1], out=products[:, at : at + rank - r])
    return products


def _fold(pair_gradient: Tensor, x: Tensor) -> Tensor:
    """From the pairs' gradient (S, pairs of R, L) to that of x (S, R, L): 2 Σ_r' d_{rr'} ⊙ x_r'."""
    rank = x.shape[1]
    gradient = torch.zeros_like(x)
    for r, at in enumerate(_row_starts(rank)):
        row = pair_gradient[:, at : at + rank - r]  # (S, R - r, L), the pairs (r, r' ≥ r)
        gradient[:, r] += (row * x[:, r:]).sum(dim=1)
        gradient[:, r + 1 :].addcmul_(row[:, 1:], x[:, r : r + 1])
    return gradient.mul_(2)


def _row_starts(rank: int) -> list[int]:
    """Where the pairs (r, r), (r, r + 1), … begin among all r ≤ r'."""
    return [r * rank - r * (r - 1) // 2 for r in range(rank)]
