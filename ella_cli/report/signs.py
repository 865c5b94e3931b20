"""How each stage of a run ended, and what `training.signs` finds odd about it."""

from __future__ import annotations

from dataclasses import dataclass

from ella_cli.report.document import finite
from ella_cli.report.results import RunResults, Stage
from ella_cli.training.signs import Course, Sign, head_mean, tail_mean


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
    norms = sorted(finite([_norm(stage) for stage in run.stages]))
    median = norms[len(norms) // 2] if norms else 0.0
    return tuple(sign for stage in run.stages for sign in _course(stage, median).signs())


def ratio(stage: Stage) -> tuple[float | None, ...]:
    """λ · penalty / CE at each logged step; None where either is missing or CE is 0."""
    return _course(stage).ratio


def _course(stage: Stage, usual_norm: float = 0.0) -> Course:
    curves = stage.curves
    return Course(
        stage.task,
        curves.ce,
        curves.weighted_penalty,
        (*curves.update_norm, _norm(stage)),
        stage.lam,
        usual_norm,
        protects=bool(stage.past_tasks),
    )


def _balance(stage: Stage) -> Balance:
    ratios = ratio(stage)
    found = finite(ratios)
    return Balance(
        task=stage.task,
        lam=stage.lam,
        ce_start=head_mean(stage.curves.ce),
        ce_end=tail_mean(stage.curves.ce),
        weighted_penalty_end=tail_mean(stage.curves.weighted_penalty),
        ratio_end=tail_mean(ratios),
        ratio_largest=max(found) if found else None,
        update_norm=_norm(stage),
    )


def _norm(stage: Stage) -> float | None:
    """‖ΔW‖_F at the end."""
    if stage.update_norm is not None:
        return stage.update_norm
    curve = finite(stage.curves.update_norm)
    return curve[-1] if curve else None
