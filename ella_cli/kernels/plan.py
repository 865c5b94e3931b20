"""The penalty of all modules of a model: what a task keeps constant is prepared once.

    plan = plan_penalty(pasts, scales, rank=8)      # at the start of a task
    total, values = plan(bs, as_)                   # at every step
    total.backward()                                # the gradients are there already

Gradients are made beside the loss, in one pass, and only scaled in backward: they are linear in
the upstream gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ella_cli.errors import NonFiniteError, SettingsError, ShapeError
from ella_cli.kernels.cost import Work, cheapest, rates_of
from ella_cli.kernels.eager import eager_terms
from ella_cli.kernels.form import AUTO, EAGER, FUSED, GRAM, check_form
from ella_cli.kernels.fused import fused_terms
from ella_cli.kernels.gram import GramConstants, gram_constants, gram_terms
from ella_cli.kernels.operands import Factors, Past, check_past, check_update, compute_dtype


class PenaltyPlan:
    """Σ ‖(s_m · B_m A_m) ⊙ W_m‖²_F over modules; made by `plan_penalty`.

    `forms` and `names` say, module by module, how each is computed and what it is called in errors.
    """

    def __init__(
        self,
        pasts: Sequence[Past],
        scales: Sequence[float],
        ranks: Sequence[int],
        forms: Sequence[str],
        names: Sequence[str],
        *,
        keep: bool = True,
    ) -> None:
        self.names = tuple(names)
        self.forms = tuple(forms)
        self.scales = tuple(scales)
        self._ranks = tuple(ranks)
        self._keep = keep
        # Multiplied out once: from here on this module is a dense one.
        self._pasts = tuple(
            past.dense() if form == FUSED and isinstance(past, Factors) else past
            for past, form in zip(pasts, forms, strict=True)
        )
        self._gram_constants: dict[tuple[tuple[int, ...], torch.dtype], GramConstants] = {}

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The total, differentiable in every B and A, and each module's share, detached.

        Args:
            bs: LoRA B of each module, (M, R), any float dtype and layout.
            as_: LoRA A of each module, (R, N), on the device of its B.

        Returns:
            Scalar f32 and values (modules,) f32; f64 as soon as one B or A is.

        Raises:
            ShapeError: the number of modules, a shape or a device does not fit.
            NonFiniteError: a module's penalty or gradient is infinite or NaN.
        """
        self._check(bs, as_)
        if not bs:
            return torch.zeros(()), torch.zeros(0)
        total, values = _Planned.apply(self, *bs, *as_)  # type: ignore[no-untyped-call]
        return total, values

    def _check(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> None:
        if not len(bs) == len(as_) == len(self._pasts):
            raise ShapeError(
                f"{len(bs)} B and {len(as_)} A for a plan of {len(self._pasts)} modules",
                hint="give one B and one A a module, in the plan's order",
            )
        for b, a, past, rank, name in zip(
            bs, as_, self._pasts, self._ranks, self.names, strict=True
        ):
            check_update(b, a, past, name)
            if b.shape[1] != rank:
                raise ShapeError(
                    f"{name}: B {tuple(b.shape)} has rank {b.shape[1]}, its plan {rank}",
                    hint="make the plan with the ranks it is called with",
                )

    def _terms(
        self, bs: Sequence[Tensor], as_: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Value, ∂/∂B and ∂/∂A of every module."""
        values: list[Tensor] = [torch.empty(0)] * len(bs)
        dbs, das = list(values), list(values)
        stacks: dict[tuple[Any, ...], list[int]] = {}
        for i, (b, a, past, form) in enumerate(zip(bs, as_, self._pasts, self.forms, strict=True)):
            if b.shape[1] == 0 or (isinstance(past, Factors) and past.rank == 0):
                values[i] = torch.zeros((), dtype=compute_dtype(b, a), device=b.device)
                dbs[i], das[i] = torch.zeros_like(b), torch.zeros_like(a)
            elif form == GRAM and isinstance(past, Factors):
                key = (b.shape, a.shape, past.rank, b.device, compute_dtype(b, a))
                stacks.setdefault(key, []).append(i)
            else:
                terms = eager_terms if form == EAGER else fused_terms
                values[i], dbs[i], das[i] = terms(b, a, past, self.scales[i])
        for (*_, dtype), members in stacks.items():
            value, db, da = gram_terms(
                [bs[i] for i in members],
                [as_[i] for i in members],
                self._constants(tuple(members), dtype),
                [self.scales[i] for i in members],
            )
            for slot, i in enumerate(members):
                values[i], dbs[i], das[i] = value[slot], db[slot], da[slot]
        return values, dbs, das

    def _constants(self, members: tuple[int, ...], dtype: torch.dtype) -> GramConstants:
        key = members, dtype
        if key not in self._gram_constants:
            factors = [past for i in members if isinstance(past := self._pasts[i], Factors)]
            self._gram_constants[key] = gram_constants(factors, dtype, keep=self._keep)
        return self._gram_constants[key]

    def _check_finite(self, values: Tensor, gradients: Sequence[Tensor]) -> None:
        largest = [g.detach().abs().amax() for g in gradients if g.numel()]
        if torch.isfinite(torch.stack([values.sum(), *largest])).all():
            return
        count = len(self.names)
        for i, name in enumerate(self.names):
            parts = (values[i], gradients[i], gradients[count + i])
            if not all(bool(torch.isfinite(part).all()) for part in parts):
                raise NonFiniteError(
                    f"the penalty of {name} is {float(values[i])}, or its gradient is not finite",
                    hint="the update or W_past holds huge or NaN weights; lower the learning rate",
                )
        raise NonFiniteError(
            f"the penalty of {count} modules together is {float(values.sum())}",
            hint="the updates or W_past hold huge weights; lower the learning rate",
        )


class _Planned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: PenaltyPlan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        half = len(tensors) // 2
        bs, as_ = tensors[:half], tensors[half:]
        shares, dbs, das = plan._terms(bs, as_)
        dtype = compute_dtype(*tensors)
        values = torch.stack([share.to(bs[0].device, dtype) for share in shares])  # (modules,)
        plan._check_finite(values, (*dbs, *das))
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.save_for_backward(*dbs, *das)
        ctx.mark_non_differentiable(values)
        return values.sum(dtype=torch.float64).to(dtype), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            (gradient * upstream.to(gradient.device)).to(dtype) if needed else None
            for gradient, dtype, needed in zip(
                ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:], strict=True
            )
        )
        return (None, *gradients)


def plan_penalty(
    pasts: Sequence[Past],
    scales: Sequence[float],
    *,
    rank: int | Sequence[int],
    form: str = AUTO,
    names: Sequence[str] | None = None,
    calls: float = math.inf,
) -> PenaltyPlan:
    """Prepares what a task keeps constant and chooses each module's form.

    Args:
        pasts: W_past of each module, dense (M, N) or `Factors`; it must not change afterwards.
        scales: alpha / R of each module, unitless.
        rank: LoRA rank R of all modules, or of each.
        form: "auto", "eager", "fused", "tiled" or "gram"; all are exact.
        names: what errors call the modules.
        calls: how often the plan will be called; few calls make preparation weigh more.

    Raises:
        ShapeError: lists of different length, or a past that is no float matrix.
        SettingsError: an unknown form, or one that needs factors for a dense past.
    """
    check_form(form)
    ranks = [rank] * len(pasts) if isinstance(rank, int) else list(rank)
    names = [f"module {i}" for i in range(len(pasts))] if names is None else list(names)
    if not len(pasts) == len(scales) == len(ranks) == len(names):
        raise ShapeError(
            f"{len(pasts)} pasts, {len(scales)} scales, {len(ranks)} ranks, {len(names)} names",
            hint="give one of each a module",
        )
    for past, name in zip(pasts, names, strict=True):
        check_past(past, name)
    forms = [
        _form_of(past, module_rank, form, name, calls)
        for past, module_rank, name in zip(pasts, ranks, names, strict=True)
    ]
    return PenaltyPlan(pasts, scales, ranks, forms, names, keep=calls > 1)


def _form_of(past: Past, rank: int, form: str, name: str, calls: float) -> str:
    if form not in (AUTO, EAGER, FUSED) and not isinstance(past, Factors):
        raise SettingsError(
            f"form {form!r} needs the factors of W_past; that of {name} is dense",
            hint="use form auto or fused, or a factored past",
        )
    if form != AUTO:
        return form
    past_rank = past.rank if isinstance(past, Factors) else None
    work = Work(past.shape[0], past.shape[1], rank, past_rank)
    return cheapest(work, rates_of(past.device), calls=calls)
