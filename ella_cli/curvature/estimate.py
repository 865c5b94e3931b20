"""Kronecker factors of the Fisher matrix of one module, from the tokens of many examples.

At the logits of one answer token with chances p the Fisher matrix is diag(p) − p pᵀ.
`fisher_probe` draws a vector with that second moment; propagated backwards it gives, per example n
with inputs x (T, N), output gradients g (T, M), and J_n = gᵀx at the weights. The Fisher matrix
E_n vec(J_n) vec(J_n)ᵀ is approximated by one Kronecker product G ⊗ C with

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


def fisher_probe(chances: Tensor, generator: torch.Generator) -> Tensor:
    """The vector d = (diag(√p) − p √pᵀ) ε of random signs ε: E[d dᵀ] = diag(p) − p pᵀ.

    Drawing an answer y and taking its gradient p − 1_y has the same mean square, but there an
    unlikely answer is a rare and large event; here each answer takes part in each token, as √p.
    Half as many rows then give an estimate as certain (docs/results.md).

    Args:
        chances: p of each answer token, (tokens, V), f32.
        generator: on the CPU.

    Returns:
        (tokens, V), f32, on the device of `chances`; each row sums to 0.
    """
    signs = torch.randint(0, 2, chances.shape, generator=generator, dtype=torch.int8)
    roots = chances.sqrt().mul_(signs.mul_(2).sub_(1).to(chances.device))
    return roots - chances * roots.sum(-1, keepdim=True)


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
            g: what a probe of each example's logits becomes at its output, (S, T, M).
        """
        x, g = x.float(), g.float()
        by_x = torch.bmm(torch.bmm(x, x.mT), g)  # (S, T, M)
        by_g = torch.bmm(torch.bmm(g, g.mT), x)  # (S, T, N)
        self.g.addmm_(g.flatten(0, 1).T, by_x.flatten(0, 1))
        self.c.addmm_(x.flatten(0, 1).T, by_g.flatten(0, 1))
        self.square += float((g * by_x).sum())


@dataclass(frozen=True, eq=False)
class LowRank:
    """A positive semidefinite matrix (n, n) as about factor · factorᵀ + floor · I.

    Attributes:
        factor: (n, K), f32: leading eigenvectors times the roots of their shrunk eigenvalues.
        floor: what every direction has beside them.
        dropped: the share of the matrix's trace whose eigenvectors were cut off, in [0, 1].
    """

    factor: Tensor
    floor: float
    dropped: float


def low_rank(matrix: Tensor, rank: int, shrinkage: float) -> LowRank:
    """The leading 1 to `rank` eigenvectors of (1 − shrinkage) · matrix, and an even rest.

    The rest, so that the trace is the matrix's, is `shrinkage` of the trace and whatever was cut
    off. Source: Ledoit & Wolf 2004, linear shrinkage towards a multiple of the identity.

    Args:
        matrix: positive semidefinite, (n, n).
        shrinkage: in [0, 1).
    """
    values, vectors = torch.linalg.eigh(matrix.double())  # ascending
    values = values.clamp_min_(0).flip(0)
    total = float(values.sum())
    kept = max(1, min(rank, int((values > 0).sum())))
    factor = vectors.flip(1)[:, :kept] * (values[:kept] * (1 - shrinkage)).sqrt()
    dropped = max(1 - float(values[:kept].sum()) / total, 0.0) if total else 0.0
    even = shrinkage + (1 - shrinkage) * dropped
    return LowRank(factor.float().contiguous(), even * total / len(matrix), dropped)
