"""Signs that a penalty did too much, or nothing: what the curves of a stage say.

- collapse: the update shrank to almost nothing while the task was not learned. `B = 0` minimises
  the penalty, so a large λ can train a task to the adapter that does nothing.
- idle: λ · penalty never reached a share of the cross-entropy that could have mattered.
- ruling: at the end λ · penalty outweighs the cross-entropy that the task is trained for.

The thresholds are conventions, stated in every sentence that applies one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ella_cli.report.document import finite, number
from ella_cli.report.results import RunResults, Stage

# An update this small beside the run's median update, or beside its own peak, has collapsed...
COLLAPSED_NORM = 0.1
# ...if the cross-entropy also ended above this share of where it began.
UNLEARNED_CE = 0.8
# λ · penalty below this share of the cross-entropy at every step does nothing that can be seen.
IDLE_SHARE = 1e-3
# "At the end" is the last tenth of a curve; single steps are noisy.
_TAIL = 0.1

Kind = Literal["collapse", "idle", "ruling"]


@dataclass(frozen=True)
class Sign:
    task: str
    kind: Kind
    text: str


@dataclass(frozen=True)
class Balance:
    """How one stage ended. CE and λ · penalty in nats, means over the last tenth of the steps."""

    task: str
    lam: float | None
    ce_start: float | None
    ce_end: float | None
    weighted_penalty_end: float | None
    ratio_end: float | None
    ratio_largest: float | None
    update_norm: float | None


def balances(run: RunResults) -> tuple[Balance, ...]:
    return tuple(_balance(stage) for stage in run.stages)


def signs(run: RunResults) -> tuple[Sign, ...]:
    """Warnings in the order of the stages; at most one of a kind for each."""
    stages = balances(run)
    norms = sorted(finite([b.update_norm for b in stages]))
    median = norms[len(norms) // 2] if norms else 0.0
    found: list[Sign] = []
    for stage, balance in zip(run.stages, stages, strict=True):
        found.extend(_signs_of(stage, balance, median))
    return tuple(found)


def ratio(stage: Stage) -> tuple[float | None, ...]:
    """λ · penalty / CE at each logged step; None where either is missing or CE is 0."""
    pairs = zip(stage.curves.weighted_penalty, stage.curves.ce, strict=True)
    return tuple(p / c if p is not None and c else None for p, c in pairs)


def _signs_of(stage: Stage, balance: Balance, median: float) -> list[Sign]:
    found: list[Sign] = []
    norm = balance.update_norm
    peak = max([*finite(stage.curves.update_norm), median], default=0.0)
    unlearned = (
        balance.ce_start is not None
        and balance.ce_end is not None
        and balance.ce_end > UNLEARNED_CE * balance.ce_start
    )
    if norm is not None and peak > 0 and norm < COLLAPSED_NORM * peak and unlearned:
        found.append(
            Sign(
                stage.task,
                "collapse",
                f"{stage.task} collapsed: ‖ΔW‖ ended at {number(norm)}, under "
                f"{COLLAPSED_NORM:.0%} of {number(peak)}, and the cross-entropy at "
                f"{_text(balance.ce_end)} from {_text(balance.ce_start)} (over "
                f"{UNLEARNED_CE:.0%}). λ is too large for this task.",
            )
        )
    if not stage.lam:
        return found
    largest = balance.ratio_largest
    if stage.past_tasks and largest is not None and largest < IDLE_SHARE:
        found.append(
            Sign(
                stage.task,
                "idle",
                f"the penalty was idle on {stage.task}: λ · penalty stayed under "
                f"{IDLE_SHARE:.1%} of the cross-entropy (at most {number(largest)} of it). "
                "This stage is a run without a penalty.",
            )
        )
    if balance.ratio_end is not None and balance.ratio_end > 1:
        found.append(
            Sign(
                stage.task,
                "ruling",
                f"the penalty ruled {stage.task}: λ · penalty ended at "
                f"{number(balance.ratio_end)} times the cross-entropy.",
            )
        )
    return found


def _balance(stage: Stage) -> Balance:
    ratios = ratio(stage)
    known = finite(ratios)
    return Balance(
        task=stage.task,
        lam=stage.lam,
        ce_start=_head_mean(stage.curves.ce),
        ce_end=_tail_mean(stage.curves.ce),
        weighted_penalty_end=_tail_mean(stage.curves.weighted_penalty),
        ratio_end=_tail_mean(ratios),
        ratio_largest=max(known) if known else None,
        update_norm=stage.update_norm
        if stage.update_norm is not None
        else _last(stage.curves.update_norm),
    )


def _tail_mean(values: Sequence[float | None]) -> float | None:
    return _mean(finite(values[-_tenth(values) :]))


def _head_mean(values: Sequence[float | None]) -> float | None:
    return _mean(finite(values[: _tenth(values)]))


def _tenth(values: Sequence[float | None]) -> int:
    return max(1, math.ceil(_TAIL * len(values)))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _last(values: Sequence[float | None]) -> float | None:
    known = finite(values)
    return known[-1] if known else None


def _text(value: float | None) -> str:
    return "?" if value is None else number(value)
