"""What LoRA updates cost the past tasks: Kronecker factors a module, and directions of all modules.

    loss = ½ Σ_t [ Σ_m tr(ΔWᵀ G_t ΔW C_t) + ‖s_t‖² ],    ΔW = scale · B A,  m a module
    s_t = Σ_m R_t · vec(Z_t),    Z_t = U_tᵀ ΔW V_t = scale · (U_tᵀB)(A V_t)
    tr(ΔWᵀ G_t ΔW C_t) = scale² ⟨S_t, H_t⟩
    S_t = Bᵀ G_t B = (U_tᵀB)ᵀ(U_tᵀB) + γ_t BᵀB,    H_t = A C_t Aᵀ = (A V_t)(A V_t)ᵀ + κ_t A Aᵀ
    ∂/∂B = Σ_t U_t (scale² (U_tᵀB) H_t + D_t (A V_t)ᵀ) + scale² γ_t B H_t,    D_t = scale · s_tᵀ R_t
    ∂/∂A = Σ_t (scale² S_t (A V_t) + (U_tᵀB)ᵀ D_t) V_tᵀ + scale² κ_t S_t A

with G_t = U_t U_tᵀ + γ_t I (M, M) and C_t = V_t V_tᵀ + κ_t I (N, N) of one past task and module
each; S and H are (R, R). R_t holds the task's directions, along which all modules move its answers
together, in the basis of each module's leading columns: s_t is summed over modules before it is
squared. ΔW is never built, and a sum over tasks stays a sum of Kronecker products, which no single
product equals. Each U, V and R is read twice: about 4 K R (M + N) flops a module for K columns in
each of U and V, and 4 D K'² for D directions in K' columns; beside them only (K, R) and (R, K) are
kept.

Modules of equal shape are one batched product; its tasks are padded to the most columns, its LoRA
pairs to the largest rank. B takes part as Bᵀ: on the CPU a few rows times a wide matrix are more
than twice as fast as a tall matrix times a few columns.

Source: Martens & Grosse 2015 (Kronecker-factored curvature), Ritter et al. 2018 (in continual
learning); docs/method.md derives the form for LoRA, and the directions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ella_cli.errors import ShapeError
from ella_cli.kernels.kronecker import Kronecker
from ella_cli.kernels.operands import compute_dtype
from ella_cli.kernels.planned import Planned, check_count, check_finite


class _Side(NamedTuple):
    """G, or C, of every task of modules of equal shape."""

    factors: Tensor  # (S, M, T · K): every task's U, padded with zero columns; or (S, N, T · K): V
    floors: Tensor  # (S, T)

    def to(self, dtype: torch.dtype) -> _Side:
        return _Side(self.factors.to(dtype), self.floors.to(dtype))

    def through(self, x: Tensor) -> Tensor:
        """The product x U of every task, (S, R, M) -> (S, T, R, K)."""
        count, rank, _ = x.shape
        product = torch.bmm(x, self.factors)  # (S, R, T · K)
        return product.view(count, rank, self.floors.shape[1], -1).transpose(1, 2)

    def squared(self, x: Tensor, xu: Tensor) -> Tensor:
        """The product x G xᵀ of every task, (S, T, R, R), from x and what `through` makes of it."""
        return xu @ xu.mT + self.floors[..., None, None] * (x @ x.mT)[:, None]

    def times(self, weights: Tensor, x: Tensor, xu: Tensor, more: Tensor | None) -> Tensor:
        """Σ over tasks of weights x G + more Uᵀ, (S, R, M).

        Args:
            weights: (S, T, R, R).
            x, xu: as `squared` takes them.
            more: (S, T, R, K'), for the leading K' columns of U.
        """
        by_factors = weights @ xu  # (S, T, R, K)
        if more is not None:
            by_factors[..., : more.shape[-1]] += more
        by_floors = (self.floors[..., None, None] * weights).sum(1)  # (S, R, R)
        flat = by_factors.transpose(1, 2).flatten(2)  # (S, R, T · K)
        return torch.bmm(flat, self.factors.mT) + by_floors @ x


# Modules and tasks are stacked where that takes at most so many times the room they have: a
# stranger's file could hold little and be as wide as it likes.
_MOST_PADDING = 16


class _Batch(NamedTuple):
    """Modules of equal shape with terms of the same tasks, stacked."""

    members: tuple[int, ...]
    u: _Side
    v: _Side
    scales: Tensor  # (S,)
    tasks: Tensor  # (T,) int64: which task each term is of
    directions: Tensor | None  # (S, T, D, K_G', K_C'), padded with zeros


class _Seen(NamedTuple):
    """A batch's updates through its factors."""

    batch: _Batch
    bt: Tensor  # (S, R, M)
    a: Tensor  # (S, R, N)
    bu: Tensor  # (S, T, R, K_G)
    av: Tensor  # (S, T, R, K_C)
    moves: Tensor | None  # (S, T, D): each module's part of s


class Others(NamedTuple):
    """The other processes, each with a share of the modules.

    Attributes:
        gather: adds up what all of them move along the directions, (tasks, D); called once a call
            in each of them, also in one without modules.
        size: (tasks, D), the same in all of them.
        device: of a process without modules.
    """

    gather: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    device: torch.device


class CurvaturePlan:
    """What updates cost the past tasks, nats; made by `plan_curvature`."""

    def __init__(
        self,
        batches: Sequence[_Batch],
        names: Sequence[str],
        shapes: Shapes,
        others: Others | None,
    ) -> None:
        self.names = tuple(names)
        self._batches = tuple(batches)
        self._shapes = tuple(shapes)
        self._others = others
        with_any = [batch for batch in batches if batch.directions is not None]
        tasks = max((int(batch.tasks.max()) + 1 for batch in with_any), default=0)
        most = max((one.directions.shape[2] for one in with_any), default=0)  # type: ignore[union-attr]
        # Of several processes each knows only its own modules' tasks.
        self._size = (tasks, most) if others is None else others.size

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The total, differentiable in every B and A, and each module's share, detached.

        Args:
            bs: LoRA B of each module, (M, R), any float dtype.
            as_: LoRA A of each module, (R, N), on the device of its B.

        Returns:
            Scalar f32 and values (modules,) f32; f64 as soon as one B or A is. A module's part of
            the directions can be negative: it may move answers back that others move.

        Raises:
            ShapeError: the number of modules or a shape does not fit.
            NonFiniteError: a module's penalty or gradient is infinite or NaN.
        """
        self._check(bs, as_)
        if not bs:
            # The others wait for this process's moves, none as they are.
            self._together([], torch.float32)
            return torch.zeros(()), torch.zeros(0)
        total, values = Planned.apply(self, *bs, *as_)  # type: ignore[no-untyped-call]
        return total, values

    def _check(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> None:
        check_count(bs, as_, len(self.names))
        for b, a, shape, name in zip(bs, as_, self._shapes, self.names, strict=True):
            fits = b.ndim == a.ndim == 2 and b.shape[1] == a.shape[0]
            if not fits or (b.shape[0], a.shape[1]) != shape:
                raise ShapeError(
                    f"{name}: B {tuple(b.shape)} · A {tuple(a.shape)} does not fit "
                    f"its curvature {shape}",
                    hint="adapter and past must share a base model; see `ella inspect past`",
                )

    def terms(
        self, bs: Sequence[Tensor], as_: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Values (modules,), ∂/∂B and ∂/∂A of every module; all finite."""
        dtype = compute_dtype(*bs, *as_)
        values = torch.zeros(len(bs), dtype=dtype, device=bs[0].device)  # (modules,)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        seen = [_see(batch, bs, as_, dtype) for batch in self._batches]
        together = self._together(seen, dtype)
        for one in seen:
            value, dbt, da = _terms(one, together)
            values[list(one.batch.members)] += value.to(values.device)
            db = dbt.mT.contiguous()  # (S, M, R)
            for i, one_db, one_da in zip(one.batch.members, db, da, strict=True):
                rank = as_[i].shape[0]
                pair = one_db[:, :rank], one_da[:rank]
                if i in found:
                    # Its tasks are in several batches.
                    pair = found[i][0] + pair[0], found[i][1] + pair[1]
                found[i] = pair
        for i in set(range(len(bs))) - set(found):
            found[i] = torch.zeros_like(bs[i], dtype=dtype), torch.zeros_like(as_[i], dtype=dtype)
        dbs, das = map(list, zip(*(found[i] for i in range(len(bs))), strict=True))
        check_finite(self.names, values, dbs, das, "the curvature")
        return values, dbs, das

    def _together(self, seen: Sequence[_Seen], dtype: torch.dtype) -> Tensor:
        """The moves s of every task, (tasks, D), over all modules, those of other processes too."""
        device = seen[0].bt.device if seen else self._others.device if self._others else None
        total = torch.zeros(*self._size, dtype=dtype, device=device)
        for one in seen:
            if one.moves is not None:
                moves = one.moves.sum(0).to(total.device)  # (T, D)
                padded = torch.nn.functional.pad(moves, (0, self._size[1] - moves.shape[1]))
                total.index_add_(0, one.batch.tasks.to(total.device), padded)
        return total if self._others is None else self._others.gather(total)


def _see(batch: _Batch, bs: Sequence[Tensor], as_: Sequence[Tensor], dtype: torch.dtype) -> _Seen:
    bt = _stacked([bs[i].detach().to(dtype).mT for i in batch.members])  # (S, R, M)
    a = _stacked([as_[i].detach().to(dtype) for i in batch.members])  # (S, R, N)
    batch = batch._replace(
        u=batch.u.to(dtype), v=batch.v.to(dtype), scales=batch.scales.to(dtype),
        directions=None if batch.directions is None else batch.directions.to(dtype),
    )  # fmt: skip
    bu, av = batch.u.through(bt), batch.v.through(a)
    moves = None
    if batch.directions is not None:
        rows, columns = batch.directions.shape[-2:]
        z = bu[..., :rows].mT @ av[..., :columns]  # (S, T, K_G', K_C')
        moves = (z.flatten(2)[..., None, :] @ batch.directions.flatten(3).mT).squeeze(-2)
        moves = moves * batch.scales[:, None, None]
    return _Seen(batch, bt, a, bu, av, moves)


def _stacked(factors: Sequence[Tensor]) -> Tensor:
    """(R, K) of each module -> (S, R, K); where ranks differ, R is the largest and the rest 0."""
    if len({factor.shape for factor in factors}) == 1:
        return torch.stack(list(factors))
    return pad_sequence(list(factors), batch_first=True)


def _terms(seen: _Seen, together: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values (S,), ∂/∂Bᵀ (S, R, M), ∂/∂A (S, R, N), from s of every task (tasks, D)."""
    batch, bt, a, bu, av, moves = seen
    s, h = batch.u.squared(bt, bu), batch.v.squared(a, av)  # (S, T, R, R)
    square = batch.scales.square()  # (S,)
    values = 0.5 * square * (s * h).sum((1, 2, 3))
    more_u = more_v = None
    if batch.directions is not None and moves is not None:
        of_tasks = together.to(moves.device)[batch.tasks, : moves.shape[-1]]  # (T, D)
        values = values + 0.5 * (moves * of_tasks).sum((1, 2))
        rows, columns = batch.directions.shape[-2:]
        flat = of_tasks[None, :, None] @ batch.directions.flatten(3)  # (S, T, 1, K_G' · K_C')
        d = flat.view(len(square), -1, rows, columns) * batch.scales[:, None, None, None]
        more_u, more_v = av[..., :columns] @ d.mT, bu[..., :rows] @ d
    factor = square[:, None, None, None]
    return (
        values,
        batch.u.times(h * factor, bt, bu, more_u),
        batch.v.times(s * factor, a, av, more_v),
    )


Shapes = Sequence[tuple[int, int]]


def plan_curvature(
    modules: Sequence[Sequence[Kronecker]],
    shapes: Shapes,
    scales: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    others: Others | None = None,
) -> CurvaturePlan:
    """Stacks what a task keeps constant.

    Args:
        modules: of each module, one `Kronecker` a past task; none where no task has measured it.
        shapes: (M, N) of each module.
        scales: alpha / R of each module, unitless.
        names: what errors call the modules.
        others: who has the other modules, if several processes share them.

    Raises:
        ShapeError: lists of different length, or a curvature of another shape than its module.
    """
    names = [f"module {i}" for i in range(len(modules))] if names is None else list(names)
    if not len(modules) == len(shapes) == len(scales) == len(names):
        raise ShapeError(
            f"{len(modules)} modules, {len(shapes)} shapes, {len(scales)} scales, {len(names)} "
            "names",
            hint="give one of each a module",
        )
    for terms, shape, name in zip(modules, shapes, names, strict=True):
        wrong = next((term.shape for term in terms if term.shape != shape), None)
        if wrong is not None:
            raise ShapeError(
                f"{name} is {shape}, its curvature {wrong}",
                hint="the curvature was measured on another base model",
            )
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, (terms, shape) in enumerate(zip(modules, shapes, strict=True)):
        if terms:
            alike[shape, tuple(term.task for term in terms), terms[0].u.device].append(i)
    batches = []
    for members in alike.values():
        own = [modules[i] for i in members]
        if _padded_numbers(own) <= _MOST_PADDING * _numbers(own):
            batches.append(_batch(members, own, scales))
        else:
            batches += [_batch([i], [[term]], scales) for i in members for term in modules[i]]
    return CurvaturePlan(batches, names, shapes, others)


def _numbers(modules: Sequence[Sequence[Kronecker]]) -> int:
    """What their factors and directions hold."""
    return sum(
        t.u.numel() + t.v.numel() + (0 if t.directions is None else t.directions.numel())
        for terms in modules
        for t in terms
    )


def _padded_numbers(modules: Sequence[Sequence[Kronecker]]) -> int:
    """What they would hold, stacked."""
    terms = [term for one in modules for term in one]
    rows, columns = terms[0].shape
    sides = rows * max(t.u.shape[1] for t in terms) + columns * max(t.v.shape[1] for t in terms)
    directions = [t.directions.shape for t in terms if t.directions is not None]
    widest = math.prod(max(sizes) for sizes in zip(*directions, strict=True)) if directions else 0
    return len(terms) * (sides + widest)


def _batch(
    members: Sequence[int], terms: Sequence[Sequence[Kronecker]], scales: Sequence[float]
) -> _Batch:
    u = _side([[(t.u, t.u_floor) for t in one] for one in terms])
    v = _side([[(t.v, t.v_floor) for t in one] for one in terms])
    device, dtype = u.factors.device, u.factors.dtype
    return _Batch(
        tuple(members),
        u,
        v,
        torch.tensor([scales[i] for i in members], dtype=dtype, device=device),
        torch.tensor([term.task for term in terms[0]], device=device),
        _directions(terms, dtype),
    )


def _directions(terms: Sequence[Sequence[Kronecker]], dtype: torch.dtype) -> Tensor | None:
    shapes = [t.directions.shape for one in terms for t in one if t.directions is not None]
    if not shapes:
        return None
    widest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    device = terms[0][0].u.device
    stacked = torch.zeros(len(terms), len(terms[0]), *widest, dtype=dtype, device=device)
    for of_module, one in zip(stacked, terms, strict=True):
        for row, term in zip(of_module, one, strict=True):
            if term.directions is not None:
                d, rows, columns = term.directions.shape
                row[:d, :rows, :columns] = term.directions.detach()
    return stacked


def _side(modules: Sequence[Sequence[tuple[Tensor, float]]]) -> _Side:
    """Factors and floors of each module's tasks, stacked; in f32, or f64 as they were."""
    width = max(factor.shape[1] for one in modules for factor, _ in one)
    dtype = compute_dtype(*(factor for one in modules for factor, _ in one))
    factors = torch.stack([
        torch.cat([_padded(factor.detach().to(dtype), width) for factor, _ in one], dim=1)
        for one in modules
    ])  # fmt: skip
    floors = [[floor for _, floor in one] for one in modules]
    return _Side(factors, torch.tensor(floors, dtype=dtype, device=factors.device))


def _padded(factor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(factor, (0, width - factor.shape[1]))
