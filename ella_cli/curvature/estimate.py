"""Kronecker factors of the Fisher matrix of one module, from the tokens of many examples.

Per example n with inputs x (T, N) and output gradients g (T, M) of an answer's log-likelihood, the
gradient with respect to the weights is J_n = gᵀx. The Fisher matrix Σ_n vec(J_n) vec(J_n)ᵀ is
approximated by one Kronecker product G ⊗ C with

    G = Σ_n J_n J_nᵀ = Σ_n gᵀ (x xᵀ) g,    C = Σ_n J_nᵀ J_n / τ,    τ = Σ_n ‖J_n‖²_F

which is one step of the power iteration for the nearest Kronecker product, keeps the trace, and
sums over the tokens of an example before it squares, as the loss does. J_n is never built: the
token products x xᵀ and g gᵀ, (T, T), are enough. A padded token has g = 0 and adds nothing.

Source: Morwani et al. 2024 (arXiv 2406.17748) for the power iteration; docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Moments:
    """Running sums of one module, f32, on the module's device.

    Attributes:
        g: Σ J_n J_nᵀ, (M, M).
        c: Σ J_nᵀ J_n, (N, N).
        square: Σ ‖J_n‖²_F, the trace of either.
    """

    g: Tensor
    c: Tensor
    square: float = 0.0

    @classmethod
    def of(cls, rows: int, columns: int, device: torch.device) -> Moments:
        return cls(
            torch.zeros(rows, rows, device=device), torch.zeros(columns, columns, device=device)
        )

    def add(self, x: Tensor, g: Tensor) -> None:
        """
        Args:
            x: inputs of the module, (S, T, N), any float dtype.
            g: gradients of each example's log-likelihood at its output, (S, T, M).
        """
        x, g = x.float(), g.float()
        by_x = torch.bmm(torch.bmm(x, x.mT), g)  # (S, T, M)
        by_g = torch.bmm(torch.bmm(g, g.mT), x)  # (S, T, N)
        self.g.addmm_(g.flatten(0, 1).T, by_x.flatten(0, 1))
        self.c.addmm_(x.flatten(0, 1).T, by_g.flatten(0, 1))
        self.square += float((g * by_x).sum())


@dataclass(frozen=True, eq=False)
class Truncated:
    """The leading eigenvectors of a symmetric matrix, times the roots of their eigenvalues.

    Attributes:
        factor: (n, K), so that the matrix is about factor · factorᵀ.
        dropped: the share of the trace that was cut off, in [0, 1].
    """

    factor: Tensor
    dropped: float


def truncated(matrix: Tensor, rank: int) -> Truncated:
    """The best factor of 1 to `rank` columns of a positive semidefinite matrix (n, n)."""
    values, vectors = torch.linalg.eigh(matrix.double())  # ascending
    values = values.clamp_min_(0).flip(0)
    total = float(values.sum())
    kept = max(1, min(rank, int((values > 0).sum())))
    factor = vectors.flip(1)[:, :kept] * values[:kept].sqrt()
    dropped = 1 - float(values[:kept].sum()) / total if total else 0.0
    return Truncated(factor.float().contiguous(), max(dropped, 0.0))
