"""The penalty called at once, without a plan."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ella_cli.errors import ShapeError
from ella_cli.kernels.form import AUTO
from ella_cli.kernels.operands import Past
from ella_cli.kernels.plan import plan_penalty


def penalty(
    b: Tensor,
    a: Tensor,
    past: Past,
    scale: float = 1.0,
    *,
    form: str = AUTO,
    precision: str | None = None,
) -> Tensor:
    """Squared Frobenius norm of (scale · B A) ⊙ W_past.

    Args:
        b: LoRA B, (M, R), any float dtype and layout.
        a: LoRA A, (R, N), same device as `b`.
        past: W_past, dense (M, N) or its factors; no gradient flows into it.
        scale: alpha / R (alpha / sqrt(R) with rsLoRA), unitless.
        form: how it is computed, "auto", "eager", "fused", "tiled" or "gram"; all are exact.
        precision: of the products in CUDA kernels, "ieee" or "tf32"; see `plan_penalty`.

    Returns:
        Scalar f32 (f64 if B or A is), differentiable once in `b` and `a`.

    Raises:
        ShapeError: B · A and W_past do not fit.
        SettingsError: an unknown form or precision, or a form that needs factors for a dense past.
        NonFiniteError: the value or a gradient is infinite or NaN.

    Source: ELLA, arXiv 2601.02232, Eq. 5; gradients in docs/method.md.
    """
    return penalty_many([b], [a], [past], [scale], form=form, precision=precision)[0]


def penalty_many(
    bs: Sequence[Tensor],
    as_: Sequence[Tensor],
    pasts: Sequence[Past],
    scales: Sequence[float],
    *,
    form: str = AUTO,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`penalty` of all modules of a model: the total, and each module's value, detached.

    A training loop makes a `plan_penalty` instead, which prepares a task's constants once.

    Returns:
        Scalar f32, differentiable in every B and A; values (modules,) f32.

    Raises:
        ShapeError: lists of different length, or a B · A that does not fit its W_past.
        SettingsError: an unknown form or precision, or a form that needs factors for a dense past.
        NonFiniteError: a module's value or a gradient is infinite or NaN.
    """
    ranks = [b.shape[-1] if b.ndim else 0 for b in bs]
    if len(ranks) != len(pasts):
        raise ShapeError(
            f"{len(bs)} B for {len(pasts)} pasts", hint="give one B, A, past and scale a module"
        )
    plan = plan_penalty(pasts, scales, rank=ranks, form=form, precision=precision, calls=1)
    return plan(bs, as_)
