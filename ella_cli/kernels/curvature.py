"""½ tr(ΔWᵀ G ΔW C) of LoRA updates against a sum of Kronecker-factored curvatures.

    loss = ½ Σ_t tr(ΔWᵀ G_t ΔW C_t) = ½ s² Σ_t ⟨S_t, H_t⟩,    ΔW = s · B A
    S_t = Bᵀ G_t B = (U_tᵀB)ᵀ(U_tᵀB) + γ_t BᵀB,    H_t = A C_t Aᵀ = (A V_t)(A V_t)ᵀ + κ_t A Aᵀ
    ∂/∂B = s² Σ_t (U_t (U_tᵀB) + γ_t B) H_t         ∂/∂A = s² Σ_t S_t ((A V_t) V_tᵀ + κ_t A)

with G_t = U_t U_tᵀ + γ_t I (M, M) and C_t = V_t V_tᵀ + κ_t I (N, N) of one past task each; S and H
are (R, R). ΔW is never built, and a sum over tasks stays a sum of Kronecker products, which no
single product equals. Each U and V is read twice: about 8 K R (M + N) flops a module for K columns
in all, and beside them only (K, R) and (R, K) are kept; the floors γ and κ cost R² (M + N) once.
Modules of equal shape are one batched product; its tasks are padded to the most columns. B takes
part as Bᵀ: on the CPU a few rows times a wide matrix are more than twice as fast as a tall matrix
times a few columns.

Source: Martens & Grosse 2015 (Kronecker-factored curvature), Ritter et al. 2018 (in continual
learning); docs/method.md derives the form for LoRA.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ella_cli.errors import ShapeError
from ella_cli.kernels.operands import compute_dtype
from ella_cli.kernels.planned import Planned, check_count, check_finite


@dataclass(frozen=True, eq=False)
class Kronecker:
    """G ⊗ C of one task and module: G = U Uᵀ + u_floor · I, C = V Vᵀ + v_floor · I.

    Raises:
        ShapeError: U or V is no float matrix, or they lie on different devices.
    """

    u: Tensor  # (M, K_G)
    v: Tensor  # (N, K_C)
    u_floor: float = 0.0
    v_floor: float = 0.0

    def __post_init__(self) -> None:
        for letter, factor in (("U", self.u), ("V", self.v)):
            if factor.ndim != 2 or not factor.is_floating_point():
                raise ShapeError(
                    f"{letter} is {factor.dtype} {tuple(factor.shape)}, not a float matrix",
                    hint="U is (M, K) with G = U Uᵀ + γ I, V is (N, K) with C = V Vᵀ + κ I",
                )
        if self.u.device != self.v.device:
            raise ShapeError(
                f"U is on {self.u.device}, V on {self.v.device}", hint="move one to the other"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the updates it judges."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def trace(self) -> float:
        """The product tr G · tr C."""
        pairs = ((self.u, self.u_floor), (self.v, self.v_floor))
        g, c = (float(f.double().square().sum()) + floor * f.shape[0] for f, floor in pairs)
        return g * c

    def times(self, weight: float) -> Kronecker:
        """G ⊗ C times a weight of at least 0."""
        return replace(self, u=self.u * weight**0.5, u_floor=self.u_floor * weight)

    def to(self, device: torch.device) -> Kronecker:
        return replace(self, u=self.u.to(device), v=self.v.to(device))


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

    def times(self, weights: Tensor, x: Tensor, xu: Tensor) -> Tensor:
        """Σ over tasks of weights x G, (S, R, M), from weights (S, T, R, R)."""
        by_factors = (weights @ xu).transpose(1, 2).flatten(2)  # (S, R, T · K)
        by_floors = (self.floors[..., None, None] * weights).sum(1)  # (S, R, R)
        return torch.bmm(by_factors, self.factors.mT) + by_floors @ x


class _Batch(NamedTuple):
    """Modules of equal shape, stacked."""

    members: tuple[int, ...]
    u: _Side
    v: _Side
    scales: Tensor  # (S,)


class CurvaturePlan:
    """½ Σ_modules Σ_t tr(ΔWᵀ G_t ΔW C_t); made by `plan_curvature`."""

    def __init__(self, batches: Sequence[_Batch], names: Sequence[str], shapes: Shapes) -> None:
        self.names = tuple(names)
        self._batches = tuple(batches)
        self._shapes = tuple(shapes)

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The total, differentiable in every B and A, and each module's share, detached.

        Args:
            bs: LoRA B of each module, (M, R), any float dtype.
            as_: LoRA A of each module, (R, N), on the device of its B.

        Returns:
            Scalar f32 and values (modules,) f32; f64 as soon as one B or A is.

        Raises:
            ShapeError: the number of modules or a shape does not fit.
            NonFiniteError: a module's penalty or gradient is infinite or NaN.
        """
        self._check(bs, as_)
        if not bs:
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
        dbs, das = [torch.empty(0)] * len(bs), [torch.empty(0)] * len(as_)
        for batch in self._batches:
            b = torch.stack([bs[i].detach().to(dtype) for i in batch.members])  # (S, M, R)
            a = torch.stack([as_[i].detach().to(dtype) for i in batch.members])  # (S, R, N)
            value, dbt, da = _batch_terms(batch, b.mT, a, dtype)
            values[list(batch.members)] = value
            db = dbt.mT.contiguous()  # (S, M, R)
            for i, one_db, one_da in zip(batch.members, db, da, strict=True):
                dbs[i], das[i] = one_db, one_da
        measured = {i for batch in self._batches for i in batch.members}
        for i in set(range(len(bs))) - measured:
            dbs[i] = torch.zeros_like(bs[i], dtype=dtype)
            das[i] = torch.zeros_like(as_[i], dtype=dtype)
        check_finite(self.names, values, dbs, das, "the curvature")
        return values, dbs, das


def _batch_terms(
    batch: _Batch, bt: Tensor, a: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (S,), ∂/∂Bᵀ (S, R, M), ∂/∂A (S, R, N)."""
    u, v = batch.u.to(dtype), batch.v.to(dtype)
    bu, av = u.through(bt), v.through(a)
    s, h = u.squared(bt, bu), v.squared(a, av)  # (S, T, R, R)
    square = batch.scales.to(dtype).square()  # (S,)
    values = 0.5 * square * (s * h).sum((1, 2, 3))
    factor = square[:, None, None]
    return values, u.times(h, bt, bu) * factor, v.times(s, a, av) * factor


Shapes = Sequence[tuple[int, int]]


def plan_curvature(
    modules: Sequence[Sequence[Kronecker]],
    shapes: Shapes,
    scales: Sequence[float],
    *,
    names: Sequence[str] | None = None,
) -> CurvaturePlan:
    """Stacks what a task keeps constant.

    Args:
        modules: of each module, one `Kronecker` a past task; none where no task has measured it.
        shapes: (M, N) of each module.
        scales: alpha / R of each module, unitless.
        names: what errors call the modules.

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
    alike: dict[tuple[tuple[int, int], int, torch.device], list[int]] = defaultdict(list)
    for i, (terms, shape) in enumerate(zip(modules, shapes, strict=True)):
        if terms:
            alike[shape, len(terms), terms[0].u.device].append(i)
    batches = [_batch(members, modules, scales) for members in alike.values()]
    return CurvaturePlan(batches, names, shapes)


def _batch(
    members: Sequence[int], modules: Sequence[Sequence[Kronecker]], scales: Sequence[float]
) -> _Batch:
    terms = [modules[i] for i in members]
    u = _side([[(t.u, t.u_floor) for t in one] for one in terms])
    v = _side([[(t.v, t.v_floor) for t in one] for one in terms])
    of_members = torch.tensor([scales[i] for i in members], device=u.factors.device)
    return _Batch(tuple(members), u, v, of_members.to(u.factors.dtype))


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
