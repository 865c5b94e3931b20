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

import torch
from torch import Tensor

from ella_cli.errors import ShapeError
from ella_cli.kernels.choice import choose_forms
from ella_cli.kernels.form import AUTO, FUSED, check_form
from ella_cli.kernels.launch import check_precision
from ella_cli.kernels.operands import Factors, Past, check_past, check_update, compute_dtype
from ella_cli.kernels.parts import Module, Part, parts_of
from ella_cli.kernels.planned import Planned, check_count, check_finite


class PenaltyPlan:
    """Σ ‖(s_m · B_m A_m) ⊙ W_m‖²_F over modules; made by `plan_penalty`.

    `forms` and `names` say, module by module, how each is computed and what it is called in errors.
    """

    def __init__(
        self,
        modules: Sequence[Module],
        names: Sequence[str],
        *,
        precision: str | None = None,
        keep: bool = True,
        kernels: bool | None = None,
    ) -> None:
        self.names = tuple(names)
        self.forms = tuple(module.form for module in modules)
        # Multiplied out once: from here on such a module is a dense one.
        self._modules = tuple(
            module._replace(past=module.past.dense())
            if module.form == FUSED and isinstance(module.past, Factors)
            else module
            for module in modules
        )
        self._precision, self._keep, self._kernels = precision, keep, kernels
        self._parts: dict[tuple[tuple[torch.dtype, torch.dtype], ...], list[Part]] = {}

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The total, differentiable in every B and A, and each module's share, detached.

        Args:
            bs: LoRA B of each module, (M, R), any float dtype and layout.
            as_: LoRA A of each module, (R, N), on the device of its B.

        Returns:
            Scalar f32 and values (modules,) f32; f64 as soon as one B or A is. Both on the first
            module's device.

        Raises:
            ShapeError: the number of modules, a shape or a device does not fit.
            NonFiniteError: a module's penalty or gradient is infinite or NaN. On CUDA the check
                waits for the device, once a call, and once more for each shape in the Gram form.
        """
        self._check(bs, as_)
        if not bs:
            return torch.zeros(()), torch.zeros(0)
        total, values = Planned.apply(self, *bs, *as_)  # type: ignore[no-untyped-call]
        return total, values

    def _check(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> None:
        check_count(bs, as_, len(self._modules))
        for b, a, module, name in zip(bs, as_, self._modules, self.names, strict=True):
            check_update(b, a, module.past, name)
            if b.shape[1] != module.rank:
                raise ShapeError(
                    f"{name}: B {tuple(b.shape)} has rank {b.shape[1]}, its plan {module.rank}",
                    hint="make the plan with the ranks it is called with",
                )

    def terms(
        self, bs: Sequence[Tensor], as_: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Values (modules,), ∂/∂B and ∂/∂A of every module; all finite."""
        dtypes = tuple((b.dtype, a.dtype) for b, a in zip(bs, as_, strict=True))
        if dtypes not in self._parts:
            self._parts[dtypes] = parts_of(
                self._modules,
                bs,
                as_,
                precision=self._precision,
                keep=self._keep,
                kernels=self._kernels,
            )
        values: list[Tensor] = [torch.empty(0)] * len(bs)
        dbs, das = list(values), list(values)
        for part in self._parts[dtypes]:
            terms = part.terms([bs[i] for i in part.members], [as_[i] for i in part.members])
            for i, value, db, da in zip(part.members, *terms, strict=True):
                values[i], dbs[i], das[i] = value, db, da
        dtype, device = compute_dtype(*bs, *as_), bs[0].device
        together = torch.stack([value.to(device, dtype) for value in values])  # (modules,)
        check_finite(self.names, together, dbs, das, "W_past")
        return together, dbs, das


def plan_penalty(
    pasts: Sequence[Past],
    scales: Sequence[float],
    *,
    rank: int | Sequence[int],
    form: str = AUTO,
    precision: str | None = None,
    names: Sequence[str] | None = None,
    calls: float = math.inf,
) -> PenaltyPlan:
    """Prepares what a task keeps constant and chooses each module's form.

    Args:
        pasts: W_past of each module, dense (M, N) or `Factors`; it must not change afterwards.
        scales: alpha / R of each module, unitless.
        rank: LoRA rank R of all modules, or of each.
        form: "auto", "eager", "fused", "tiled" or "gram"; all are exact. "fused" multiplies
            factors out once, which takes M · N · 4 bytes; "auto" does so only if they are free.
        precision: of the products in CUDA kernels, "ieee" or "tf32"; None takes tf32 only for a
            bf16 or fp16 past; docs/method.md has the errors.
        names: what errors call the modules.
        calls: how often the plan will be called; few calls make preparation weigh more.

    Raises:
        ShapeError: lists of different length, or a past that is no float matrix.
        SettingsError: an unknown form or precision, or a form that needs factors for a dense past.
    """
    check_form(form)
    check_precision(precision)
    ranks = [rank] * len(pasts) if isinstance(rank, int) else list(rank)
    names = [f"module {i}" for i in range(len(pasts))] if names is None else list(names)
    if not len(pasts) == len(scales) == len(ranks) == len(names):
        raise ShapeError(
            f"{len(pasts)} pasts, {len(scales)} scales, {len(ranks)} ranks, {len(names)} names",
            hint="give one of each a module",
        )
    for past, name in zip(pasts, names, strict=True):
        check_past(past, name)
    forms = choose_forms(pasts, ranks, names, form=form, calls=calls)
    modules = [Module(*module) for module in zip(pasts, ranks, scales, forms, strict=True)]
    return PenaltyPlan(modules, names, precision=precision, keep=calls > 1)
