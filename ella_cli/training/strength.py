"""λ from a strength without units, so that a default means the same for any model, rank and scale.

With curvature the penalty is a predicted rise of the past tasks' loss, in nats as the loss beside
it, so λ says what a predicted nat counts, and is the strength itself: λ = ρ.

The paper's penalty is of fourth order in weights, so its λ carries the units of their inverse:
published values run from 3e4 to 5e8. There `auto` asks what repeating a past task's work costs:

    λ = ρ · CE₀ / penalty(ΔW_ref),    ΔW_ref = W_past · max_i ‖ΔW_i‖ / ‖W_past‖

"an update as large as the largest so far, along the past, costs ρ times the task's first loss".
CE₀ is the cross-entropy before the first step. ΔW_ref is known to both stores, and is the update
itself after one task. Not the last update's size: a penalty that shortens updates would make the
next λ larger, and that one's larger still (3e3, 2e4, 2e5 over three tasks, when it was tried).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ella_cli.config import RHO_OF_COORDINATES, RHO_OF_CURVATURE, TrainSettings
from ella_cli.errors import NonFiniteError, SettingsError
from ella_cli.kernels import Factors
from ella_cli.model.base import Base
from ella_cli.past import Past
from ella_cli.training.methods import METHODS, ella_penalty

_F32 = torch.finfo(torch.float32)
_ROWS = 32
_BATCH = 8


@dataclass(frozen=True)
class Strength:
    """A λ and how it was found.

    Attributes:
        lam: the number.
        rho: the strength of `auto`, None where λ was given as a number.
        first_loss, reference_cost: CE₀ and penalty(ΔW_ref), None also with curvature.
    """

    lam: float
    rho: float | None = None
    first_loss: float | None = None
    reference_cost: float | None = None

    def facts(self) -> dict[str, float | None]:
        return asdict(self)

    def __str__(self) -> str:
        if self.rho is None:
            return f"λ = {self.lam:g}"
        if self.reference_cost is None:
            return (
                f"λ = {self.lam:g} (auto: a nat that the past is predicted to lose counts so much)"
            )
        return (
            f"λ = {self.lam:.3g} (auto: ρ = {self.rho:g}, first loss {self.first_loss:.3g}, "
            f"penalty of a repeat {self.reference_cost:.3g})"
        )


def given_strength(settings: TrainSettings, index: int) -> Strength | None:
    """The λ that the settings name for task `index`; None where it is to be found.

    Raises:
        SettingsError: a list of λ that is too short, or `auto` for a method that has no such rule.
    """
    method = METHODS[settings.method]
    lam = method.lam if settings.lam is None else settings.lam
    if isinstance(lam, tuple):
        if index >= len(lam):
            raise SettingsError(
                f"--lambda names {len(lam)} values, and this is task {index + 1}",
                hint="give one a task, the first included, or a single value for all",
            )
        lam = lam[index]
    if lam != "auto":
        return Strength(float(lam))
    if settings.method != "ella":
        raise SettingsError(
            f"--lambda auto is a rule for method ella, not for {settings.method}",
            hint="give --lambda a number",
        )
    return None


def check_strengths(settings: TrainSettings, stages: int) -> None:
    """What would otherwise be noticed only when the stage is reached, hours later.

    Args:
        stages: how many are to be trained, one after another.

    Raises:
        SettingsError: a list of λ that is too short, `auto` for a method that has no such rule,
            O-LoRA's second weight without its first, or curvature to be protected and not to be
            measured.
    """
    for index in range(stages):
        check_strength(settings, index)
    penalised = METHODS[settings.method].penalty is ella_penalty and stages > 1
    if penalised and settings.energy == "curvature" and not settings.curvature_rows:
        raise SettingsError(
            "--energy curvature with --curvature-rows 0: nothing would be measured to protect",
            hint="leave --curvature-rows out, or give --energy sum",
        )


def check_strength(settings: TrainSettings, index: int) -> None:
    """
    Raises:
        SettingsError: as `given_strength`, or O-LoRA's second weight without its first.
    """
    found = given_strength(settings, index)
    if settings.method == "olora" and settings.olora_l2 and found == Strength(0.0):
        raise SettingsError(
            "--olora-l2 with --lambda 0: the second weight is taken beside the first",
            hint="give a --lambda above 0, such as 1e-6, or leave --olora-l2 out",
        )


def found_strength(
    base: Base,
    past: Past,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    curvature: bool,
    names: Sequence[str],
    rho: float | None,
) -> Strength:
    """The λ of `auto` for a task that starts now, on the model as it stands (B = 0).

    Args:
        rows: the task's encoded train rows; the first few are looked at.
        curvature: whether the penalty is the curvature's.
        names: the modules that are adapted.
        rho: what a predicted nat counts; or, with coordinates, what repeating the past's largest
            update may cost, in first losses. None for the default of each.

    Raises:
        SettingsError: the penalty of a repeat, or its λ, is none that f32 can hold.
        NonFiniteError: the first loss is infinite or NaN.
    """
    if curvature:
        rho = RHO_OF_CURVATURE if rho is None else rho
        return Strength(rho, rho)
    rho = RHO_OF_COORDINATES if rho is None else rho
    first = first_loss(base, rows)
    if not math.isfinite(first):
        raise NonFiniteError(
            "the loss of the task's first rows is not finite",
            hint="the model's activations overflow; use --dtype float32 or bfloat16",
        )
    cost = reference_cost(past, names)
    lam = rho * first / cost if cost > 0 else 0.0
    if cost and not (_F32.tiny <= cost <= _F32.max and lam <= _F32.max):
        raise SettingsError(
            f"--lambda auto finds none: the penalty of a repeat of the past is {cost:.3g}, which "
            f"float32 cannot weigh, at a first loss of {first:.3g}",
            hint="the past's updates are too small or too large to protect by coordinate; give "
            "--lambda 0, or --energy curvature",
        )
    return Strength(lam, rho, first, cost)


def first_loss(base: Base, rows: Sequence[Mapping[str, list[int]]]) -> float:
    """Mean cross-entropy per answer token over the first rows, nats."""
    collate = base.collator()
    total, tokens = 0.0, 0
    was_training = base.model.training
    base.model.train(False)
    with torch.inference_mode():
        for start in range(0, min(_ROWS, len(rows)), _BATCH):
            batch = collate(rows[start : min(start + _BATCH, _ROWS)])
            logits, labels = base.answer_logits(batch)
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            tokens += len(labels)
    base.model.train(was_training)
    return total / max(tokens, 1)


def reference_cost(past: Past, names: Sequence[str]) -> float:
    """‖ΔW ⊙ E‖² of an update along W_past as large as the largest task's, on the modules `names`.

    Of fourth order in weights, so in f64: f32 has nothing left of updates below 1e-11.
    """
    square = cost = 0.0
    for name in past.names:
        delta = past.delta(name).double()  # (M, N)
        # Of all modules, as the tasks' own norms are.
        square += float(torch.linalg.vector_norm(delta)) ** 2
        if name in names:
            energy = past.operand(name)
            dense = energy.dense() if isinstance(energy, Factors) else energy
            cost += float(torch.linalg.vector_norm(delta.mul_(dense))) ** 2
    if not square or not past.tasks:
        return 0.0
    return cost * max(task.update_norm for task in past.tasks) ** 2 / square
