"""The directions along which all modules of a model move a task's answers together.

One probe of one example gives d, the J_m of every module laid end to end, and the whole Fisher
matrix is E[d dᵀ]. Few directions hold most of it: of dbpedia's on SmolLM2-135M, 32 hold 93 %. A
direction is as large as the model, so each module's part of it is kept in the basis of the leading
columns of its G and C, whose eigenvectors are what J_m consists of most: Û ᵀ J_m V̂, (k, k').

Predictions with them rank real updates far better than those of blocks, which need a constant for
what modules do together (docs/decisions/0008).

Source: the basis is the higher-order SVD's, De Lathauwer et al. 2000; that few directions of the
whole matrix matter, Sagun et al. 2017 (arXiv 1706.04454).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ella_cli.curvature.tokens import Tokens, not_finite
from ella_cli.kernels import Kronecker

# A module's inputs lie in few directions, most of them along their mean; the gradients at its
# outputs in many. 64 columns of G's and 8 of C's leave 2 to 7 % of what an update does unseen where
# 32 of either leave 10 to 14, in half the room (docs/decisions/0011). For SmolLM2 3.9 MB a task,
# half of what the factors take.
OUTPUT_COLUMNS, INPUT_COLUMNS, DIRECTIONS = 64, 8, 64

# Of more rows there are as many directions as the room of the factors leaves, no column given up
# for them: a model of width 64 keeps more with 64 in all its columns than with 128 in half of them
# (docs/decisions/0013). Each costs a step a product, and the last ones hold little.
MOST_DIRECTIONS = 256


class Together:
    """Collects every example's d in the modules' bases.

    Args:
        modules: name -> G ⊗ C, with its columns from the largest eigenvalue down.
        rows: how many examples will be added.
    """

    def __init__(self, modules: Mapping[str, Kronecker], rows: int) -> None:
        self._modules = modules
        self._scales = {name: _norms(one) for name, one in modules.items()}  # (k,), (k')
        self._bases = {
            name: (one.u[:, : len(u)] / u, one.v[:, : len(v)] / v)
            for (name, one), (u, v) in zip(modules.items(), self._scales.values(), strict=True)
        }
        self._sizes = [u.shape[1] * v.shape[1] for u, v in self._bases.values()]
        numbers = sum(one.u.numel() + one.v.numel() for one in modules.values())
        self._count = directions_of(rows, numbers, sum(self._sizes))
        self._seen: list[Tensor] = []  # (S, Σ k · k') f32 each

    def add(self, looked_at: Tokens) -> None:
        """What one probe of a batch becomes at every module.

        Raises:
            NonFiniteError: what a module was given is infinite or NaN.
        """
        parts = []
        for name, (u, v) in self._bases.items():
            x, g = looked_at[name]
            of_u = g.float() @ u.to(g.device)  # (S, T, k)
            of_v = x.float() @ v.to(x.device)  # (S, T, k')
            parts.append(torch.bmm(of_u.mT, of_v).flatten(1).cpu())
        self._seen.append(torch.cat(parts, dim=1))
        if sum(map(len, self._seen)) >= 4 * MOST_DIRECTIONS:
            # About a thousand take the room, however many rows there are.
            self._seen = [self._leading()]

    def joined(self, tokens: int) -> tuple[dict[str, Kronecker], dict[str, float]]:
        """The modules with their directions.

        G ⊗ C stays whole beside them: what directions of the rows that were looked at do not see,
        it makes cost something (docs/decisions/0008).

        Args:
            tokens: answer tokens that were probed.

        Returns:
            By name; ½ ‖Σ R · vec(UᵀΔW V)‖² over modules is in nats per answer token. And the
            share of each module's trace that its directions hold.

        Raises:
            NonFiniteError: what a module was given is infinite or NaN.
        """
        kept = self._leading().mul_(max(tokens, 1) ** -0.5)  # (D, Σ k · k')
        self._seen.clear()
        joined, shares = {}, {}
        parts = torch.split(kept, self._sizes, dim=1)
        for (name, one), part in zip(self._modules.items(), parts, strict=True):
            u, v = self._scales[name]
            trace = one.trace
            shares[name] = float(part.double().square().sum()) / trace if trace else 0.0
            # In the basis of the columns as they are, which are not of length one.
            r = part.view(-1, len(u), len(v)) / (u[:, None] * v)
            joined[name] = replace(one, directions=r)
        return joined, shares

    def _leading(self) -> Tensor:
        """(D, Σ k · k') f32: the largest of what was seen."""
        seen = torch.cat(self._seen)  # (E, Σ k · k')
        gram = torch.zeros(len(seen), len(seen), dtype=torch.float64)
        for name, part in zip(self._bases, torch.split(seen, self._sizes, dim=1), strict=True):
            if not part.isfinite().all():
                raise not_finite(name)
            # In f64, but never all of it at once.
            gram += part.double() @ part.double().T
        # The leading left vectors Q of E examples are enough: Qᵀ · seen is the rest, weighed.
        leading = torch.linalg.eigh(gram).eigenvectors.flip(1)[:, : self._count]  # (E, D)
        kept: Tensor = leading.float().T @ seen
        return kept


def basis_columns(numbers: int) -> tuple[int, int]:
    """How many columns of U and V are the basis: directions take no more room than they do.

    Args:
        numbers: in U and V together.
    """
    room = max(1, numbers // DIRECTIONS)
    columns = min(INPUT_COLUMNS, max(1, math.isqrt(room * INPUT_COLUMNS // OUTPUT_COLUMNS)))
    return min(OUTPUT_COLUMNS, room // columns), columns


def directions_of(rows: int, numbers: int, basis: int) -> int:
    """How many directions are kept: one a row, and past `DIRECTIONS` those there is room for.

    Args:
        rows: that were looked at.
        numbers: in all U and V.
        basis: that one direction has, over all modules.
    """
    return min(rows, MOST_DIRECTIONS, max(DIRECTIONS, numbers // max(basis, 1)))


def _norms(one: Kronecker) -> tuple[Tensor, Tensor]:
    """Lengths of leading columns; one for a column of zeros, which no direction needs."""
    rows, columns = basis_columns(one.u.numel() + one.v.numel())
    u, v = one.u[:, :rows].norm(dim=0), one.v[:, :columns].norm(dim=0)
    return torch.where(u > 0, u, 1.0), torch.where(v > 0, v, 1.0)
