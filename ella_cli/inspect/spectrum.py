"""The spectrum of a past: how many directions it uses, which tasks hold them, who shares them.

Of the signed sum W_past = Σ ΔW_i, whatever the kind of energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from ella_cli.inspect.curvature import TaskCurvature, curvatures_of_tasks
from ella_cli.inspect.singular import Method, Svd, decompose, effective_rank, stable_rank
from ella_cli.inspect.task_updates import (
    separate_tasks,
    signed_sum,
    task_updates,
    why_not_separate,
)
from ella_cli.inspect.tiles import orthonormal
from ella_cli.kernels import Factors
from ella_cli.past import Past
from ella_cli.past.dense import DenseStore

LEADING = 8


@dataclass(frozen=True)
class ModuleSpectrum:
    """Singular values are those above rounding, largest first.

    `task_shares[i]` is task i's part of the leading directions, Σ_j σ_j u_jᵀ ΔW_i v_j / Σ_j σ_j²
    over the first LEADING: the parts add up to 1, and one is negative where that task works
    against the sum. Empty where tasks are not known apart.
    """

    name: str
    rows: int
    columns: int
    singular_values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    method: Method
    missed: float
    task_shares: tuple[float, ...]


@dataclass(frozen=True)
class SubspaceOverlap:
    """How much of their directions pairs of tasks share, means over modules that both adapt.

    `shared[i][j]` is the mean squared cosine of the principal angles between the spaces of two
    tasks: 1 where the smaller lies within the larger, `chance` for random spaces of their rank.
    `angles[i][j]` is the smallest principal angle, in degrees. None on no module in common.
    """

    side: str
    shared: tuple[tuple[float | None, ...], ...]
    angles: tuple[tuple[float | None, ...], ...]
    chance: float


@dataclass(frozen=True)
class SpectrumReport:
    tasks: tuple[str, ...]
    leading: int
    modules: tuple[ModuleSpectrum, ...]
    task_shares: tuple[float, ...]
    overlaps: tuple[SubspaceOverlap, ...]
    why_no_tasks: str = ""
    curvature: tuple[TaskCurvature, ...] = ()
    unmeasured: tuple[str, ...] = ()


def spectrum_of(past: Past) -> SpectrumReport:
    """One module after the other; memory is a few times the largest.

    Raises:
        PastError: the file is damaged.
    """
    tasks = separate_tasks(past)
    rank = sum(task.rank for task in past.tasks) if _low_rank(past) else None
    rounded = isinstance(past.contents, DenseStore) and past.contents.is_rounded
    modules: list[ModuleSpectrum] = []
    held = torch.zeros(len(tasks), dtype=torch.float64)  # (K,)
    whole = 0.0
    sides = (_Sides("outputs (columns of B)", len(tasks)), _Sides("inputs (rows of A)", len(tasks)))
    for name in past.names:
        factors = signed_sum(past, name)
        held_as = past.delta(name) if factors is None else factors
        svd = decompose(held_as, rank=rank, rounded=rounded)
        updates = task_updates(past, name) if tasks else ()
        parts = _task_parts(svd, updates)  # (K,)
        leading = float(svd.values[:LEADING].square().sum())
        held += parts
        whole += leading
        modules.append(_module(name, past.shape(name), svd, parts, leading))
        if tasks:
            sides[0].add([None if u is None else u.p for u in updates])
            sides[1].add([None if u is None else u.q.T for u in updates])
    return SpectrumReport(
        tasks=tasks,
        leading=LEADING,
        modules=tuple(modules),
        task_shares=tuple((held / whole).tolist()) if whole > 0 else (),
        overlaps=tuple(side.result() for side in sides) if len(tasks) > 1 else (),
        why_no_tasks="" if tasks else why_not_separate(past),
        curvature=curvatures_of_tasks(past),
        unmeasured=past.unmeasured,
    )


def _low_rank(past: Past) -> bool:
    """Whether the ranks of the tasks add up to a bound on the rank of the sum."""
    return bool(past.tasks) and all(task.shrink is None for task in past.tasks)


def _module(
    name: str, shape: tuple[int, int], svd: Svd, parts: Tensor, leading: float
) -> ModuleSpectrum:
    return ModuleSpectrum(
        name=name,
        rows=shape[0],
        columns=shape[1],
        singular_values=tuple(svd.values.tolist()),
        effective_rank=effective_rank(svd.values),
        stable_rank=stable_rank(svd.values),
        method=svd.method,
        missed=svd.missed,
        task_shares=tuple((parts / leading).tolist()) if leading > 0 else (),
    )


def _task_parts(svd: Svd, updates: Sequence[Factors | None]) -> Tensor:
    """Σ_j σ_j u_jᵀ ΔW_i v_j over the leading directions, one a task, (K,)."""
    left, right = svd.left[:, :LEADING], svd.right[:LEADING]
    parts = [
        torch.zeros((), dtype=torch.float64)
        if update is None
        else (svd.values[:LEADING] * ((left.T @ update.p) * (right @ update.q.T)).sum(dim=1)).sum()
        for update in updates
    ]
    return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.float64)


class _Sides:
    """Sums, over modules, of what pairs of tasks share on one side of their updates."""

    def __init__(self, side: str, tasks: int) -> None:
        self._side = side
        self._shared = torch.zeros(tasks, tasks, dtype=torch.float64)  # (K, K)
        self._angles = torch.zeros(tasks, tasks, dtype=torch.float64)  # (K, K)
        self._counts = torch.zeros(tasks, tasks, dtype=torch.float64)  # (K, K)
        self._chances: list[float] = []

    def add(self, spans: Sequence[Tensor | None]) -> None:
        alike: dict[int, list[tuple[int, Tensor]]] = {}
        for number, span in enumerate(spans):
            basis = None if span is None else orthonormal(span)  # (M, R)
            if basis is not None and basis.shape[1]:
                alike.setdefault(basis.shape[1], []).append((number, basis))
        # All pairs of two ranks at once: each by itself is far too little work for its call.
        for one, other in combinations_with_replacement(alike.values(), 2):
            first, second = (
                torch.triu_indices(len(one), len(one))
                if one is other
                else torch.cartesian_prod(torch.arange(len(one)), torch.arange(len(other))).T
            )  # (pairs,) each
            lefts, rights = (torch.stack([basis for _, basis in group]) for group in (one, other))
            products = torch.einsum("amr,bms->abrs", lefts, rights)[first, second]
            cosines = torch.linalg.svdvals(products).clamp(max=1.0)  # (pairs, min(R, R'))
            i, j = (
                torch.tensor([number for number, _ in group])[at]
                for group, at in ((one, first), (other, second))
            )
            apart = i != j
            for sums, values in (
                (self._shared, cosines.square().mean(dim=1)),
                (self._angles, torch.rad2deg(torch.arccos(cosines[:, 0]))),
                (self._counts, torch.ones(len(i), dtype=torch.float64)),
            ):
                sums[i, j] += values
                sums[j[apart], i[apart]] += values[apart]
            # E‖Q₁ᵀQ₂‖² = R₁R₂ / M for random spaces; of min(R₁, R₂) squared cosines.
            widest = max(lefts.shape[2], rights.shape[2])
            self._chances += [widest / lefts.shape[1]] * int(apart.sum())

    def result(self) -> SubspaceOverlap:
        chance = sum(self._chances) / len(self._chances) if self._chances else 0.0
        return SubspaceOverlap(
            self._side, self._means(self._shared), self._means(self._angles), chance
        )

    def _means(self, sums: Tensor) -> tuple[tuple[float | None, ...], ...]:
        return tuple(
            tuple(
                value / count if count else None for value, count in zip(row, counts, strict=True)
            )
            for row, counts in zip(sums.tolist(), self._counts.tolist(), strict=True)
        )
