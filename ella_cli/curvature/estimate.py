"""Kronecker factors of the Fisher matrix of one module, from the tokens of many examples.

At the logits of one answer token with chances p the Fisher matrix is diag(p) − p pᵀ.
`fisher_probe` draws a vector with that second moment; propagated backwards it gives, per example n
with inputs x (T, N), output gradients g (T, M), and J_n = gᵀx at the weights. The Fisher matrix
E_n vec(J_n) vec(J_n)ᵀ is approximated by one Kronecker product G ⊗ C with

    G = Σ_n J_n J_nᵀ = Σ_n gᵀ (x xᵀ) g,    C = Σ_n J_nᵀ J_n / τ,    τ = Σ_n ‖J_n‖²_F

which is one step of the power iteration for the nearest Kronecker product, keeps the trace, and
sums over the tokens of an example before it squares, as the loss does. J_n is never built: the
token products x xᵀ and g gᵀ, (T, T), are enough. A padded token has g = 0 and adds nothing. Nor are
G and C of wide modules: `sketch` keeps what their leading eigenvectors are found from.

Source: Morwani et al. 2024 (arXiv 2406.17748) for the power iteration; docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.curvature.sketch import PsdSum


def fisher_probe(chances: Tensor, generator: torch.Generator) -> Tensor:
    """The vector d = (diag(√p) − p √pᵀ) ε of random signs ε: E[d dᵀ] = diag(p) − p pᵀ.

    Drawing an answer y and taking its gradient p − 1_y has the same mean square, but there an
    unlikely answer is a rare and large event; here each answer takes part in each token, as √p.
    Half as many rows then give an estimate as certain (docs/results/foretelling.md).

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
    """Running sums of one module.

    Attributes:
        g: Σ J_n J_nᵀ, (M, M).
        c: Σ J_nᵀ J_n, (N, N).
        square: Σ ‖J_n‖²_F, the trace of either.
    """

    g: PsdSum
    c: PsdSum
    square: float = 0.0

    def add(self, x: Tensor, g: Tensor) -> None:
        """
        Args:
            x: inputs of the module, (S, T, N), any float dtype.
            g: what a probe of each example's logits becomes at its output, (S, T, M).
        """
        x, g = x.float(), g.float()
        of_x, of_g = torch.bmm(x, x.mT), torch.bmm(g, g.mT)  # (S, T, T)
        self.g.add(g, of_x)
        self.c.add(x, of_g)
        self.square += float((of_x * of_g).sum())


@dataclass(frozen=True, eq=False)
class LowRank:
    """A positive semidefinite matrix A (n, n) as about factor · factorᵀ + floor · I.

    Attributes:
        factor: (n, K), f32: leading eigenvectors times the roots of their shrunk eigenvalues.
        floor: what every direction has beside them.
        dropped: the share of the matrix's trace whose eigenvectors were cut off, in [0, 1].
    """

    factor: Tensor
    floor: float
    dropped: float


def low_rank(total: PsdSum, trace: float, scale: float, rank: int, shrinkage: float) -> LowRank:
    """The leading 1 to `rank` eigenvectors of A = scale · total, shrunk, and an even rest.

    The rest, so that the trace is that of A, is `shrinkage` of it and whatever was cut off. Source:
    Ledoit & Wolf 2004, linear shrinkage towards a multiple of the identity.

    Args:
        total: (n, n).
        trace: of `total`.
        shrinkage: in [0, 1).
    """
    values, vectors = total.leading()
    kept = max(1, min(rank, int((values > 0).sum())))
    factor = vectors[:, :kept] * (values[:kept] * (scale * (1 - shrinkage))).sqrt()
    dropped = max(1 - float(values[:kept].sum()) / trace, 0.0) if trace else 0.0
    even = shrinkage + (1 - shrinkage) * dropped
    return LowRank(factor.float().contiguous(), even * scale * trace / len(vectors), dropped)
