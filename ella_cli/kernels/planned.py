"""What the plans of both penalties share: one autograd node, and checks that name the module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils import get_total_norm

from ella_cli.errors import NonFiniteError, ShapeError


class Plan(Protocol):
    """Makes gradients beside the loss, in one pass."""

    def terms(
        self, bs: Sequence[Tensor], as_: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Values (modules,), ∂/∂B and ∂/∂A of every module; all finite."""


class Planned(torch.autograd.Function):
    """The total and each module's share of a plan; gradients are there already."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        half = len(tensors) // 2
        values, dbs, das = plan.terms(tensors[:half], tensors[half:])
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        ctx.save_for_backward(*dbs, *das)
        ctx.mark_non_differentiable(values)
        return values.sum(dtype=torch.float64).to(values.dtype), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needed = [i for i, wanted in enumerate(ctx.needs_input_grad[1:]) if wanted]
        scaled = _scaled([ctx.saved_tensors[i] for i in needed], upstream)
        gradients: list[Tensor | None] = [None] * len(ctx.dtypes)
        for i, gradient in zip(needed, scaled, strict=True):
            gradients[i] = gradient.to(ctx.dtypes[i])
        return (None, *gradients)


def _scaled(gradients: list[Tensor], factor: Tensor) -> Sequence[Tensor]:
    """Each times a 0-d factor: a few launches a device, not one a module."""
    if len({gradient.device for gradient in gradients}) == 1:
        scaled: Sequence[Tensor] = torch._foreach_mul(gradients, factor.to(gradients[0]))
        return scaled
    return [gradient * factor.to(gradient) for gradient in gradients]


def check_count(bs: Sequence[Tensor], as_: Sequence[Tensor], modules: int) -> None:
    """
    Raises:
        ShapeError: not one B and one A a module.
    """
    if not len(bs) == len(as_) == modules:
        raise ShapeError(
            f"{len(bs)} B and {len(as_)} A for a plan of {modules} modules",
            hint="give one B and one A a module, in the plan's order",
        )


def check_finite(
    names: Sequence[str],
    values: Tensor,
    dbs: Sequence[Tensor],
    das: Sequence[Tensor],
    against: str,
) -> None:
    """
    Raises:
        NonFiniteError: a value or a gradient is infinite or NaN; the first such module is named.
    """
    # A few launches for all of them; one a gradient took longer than the penalty itself.
    largest = get_total_norm([g for g in (*dbs, *das) if g.numel()], norm_type=math.inf)
    if torch.isfinite(torch.stack([values.sum(), largest.to(values)])).all():
        return
    for name, value, db, da in zip(names, values, dbs, das, strict=True):
        if not all(bool(torch.isfinite(part).all()) for part in (value, db, da)):
            raise NonFiniteError(
                f"the penalty of {name} is {float(value)}, or its gradient is not finite",
                hint=f"the update or {against} holds huge or NaN weights; lower the learning rate",
            )
    raise NonFiniteError(
        f"the penalty of {len(values)} modules together is {float(values.sum())}",
        hint=f"the updates or {against} hold huge weights; lower the learning rate",
    )
