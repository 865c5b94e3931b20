"""Sums of positive semidefinite matrices (n, n) of which only the leading eigenvectors are wanted.

A narrow one is kept whole. Of a wide one A only Y = A Ω is kept, Ω (n, s) thin and random: 0.5 GB
for q and v of Llama-3.1-8B in the place of 6.6, and as much less to compute. Its leading
eigenvectors come back from Y and Ω as those of Y (Ωᵀ Y)⁻¹ Yᵀ (Nyström), exactly where the rank of
A is at most s.

Source: Tropp et al. 2017, fixed-rank approximation of a positive semidefinite matrix from streaming
data (arXiv 1706.05736), algorithm 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Up to this width a matrix is kept whole: 4 MB.
WIDEST_WHOLE = 1024
# Of Ω, or twice as many as eigenvectors are asked for.
COLUMNS = 256


@dataclass(eq=False)
class PsdSum:
    """A running sum A, f32.

    Attributes:
        kept: A, (n, n), or A Ω, (n, s).
        test: Ω, (n, s), with orthonormal columns; None where A is kept.
    """

    kept: Tensor
    test: Tensor | None = None

    def add(self, tokens: Tensor, gram: Tensor) -> None:
        """Adds Σ_S tokensᵀ · gram · tokens.

        Args:
            tokens: (S, T, n), f32.
            gram: positive semidefinite, (S, T, T), f32.
        """
        seen = tokens if self.test is None else tokens @ self.test
        self.kept.addmm_(tokens.flatten(0, 1).T, torch.bmm(gram, seen).flatten(0, 1))

    def leading(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k,), largest first and none negative, and vectors (n, k), both f64."""
        if self.test is None:
            values, vectors = torch.linalg.eigh(self.kept.double())  # ascending
            return values.clamp_min_(0).flip(0), vectors.flip(1)
        y, test = self.kept.double(), self.test.double()
        # A small multiple of the identity keeps the Cholesky factor from failing; taken off again.
        shift = float(y.norm()) * len(y) ** 0.5 * torch.finfo(torch.float32).eps
        if not shift:
            return y.new_zeros(1), torch.eye(len(y), 1, dtype=y.dtype, device=y.device)
        y = y + shift * test
        core = test.T @ y
        lower = torch.linalg.cholesky((core + core.T) / 2)
        root = torch.linalg.solve_triangular(lower, y.T, upper=False).T  # (n, s)
        vectors, sigma, _ = torch.linalg.svd(root, full_matrices=False)
        return (sigma.square() - shift).clamp_min_(0), vectors


class PsdSums:
    """Makes them; sums of one width share an Ω.

    Args:
        rank: eigenvectors that will be asked for.
        seed: of Ω.
    """

    def __init__(self, rank: int, seed: int) -> None:
        self._columns = max(COLUMNS, 2 * rank)
        self._seed = seed
        self._tests: dict[int, Tensor] = {}

    def of(self, width: int, device: torch.device) -> PsdSum:
        if width <= max(WIDEST_WHOLE, self._columns):
            return PsdSum(torch.zeros(width, width, device=device))
        if width not in self._tests:
            generator = torch.Generator().manual_seed(self._seed)
            normal = torch.randn(width, self._columns, generator=generator)
            self._tests[width] = torch.linalg.qr(normal).Q.to(device)
        test = self._tests[width]
        return PsdSum(torch.zeros_like(test), test)
