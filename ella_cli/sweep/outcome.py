"""What a sweep found: mean ± deviation over seeds for each λ, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ella_cli.report.metrics import Spread, spread
from ella_cli.sweep.points import Point, lambda_order
from ella_cli.sweep.study import ERROR, FOLDER, POINT, RESULT, trials_of

if TYPE_CHECKING:
    from optuna import Study

FIGURES = ("oa", "bwt", "forgetting", "learned")


@dataclass(frozen=True)
class Finished:
    """One finished run.

    Attributes:
        figures: its results' own, None where a run has none.
        folder: the sweep's folder on the machine that made it.
        fingerprint: of its base model.
        precision: of its weights; None where an older ella did not note it.
        used: each stage's λ as a number.
    """

    point: Point
    figures: dict[str, float | None]
    folder: str
    fingerprint: str | None
    precision: str | None = None
    used: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """One λ.

    Attributes:
        spreads: mean and deviation of each figure over its seeds; None where none has one.
        failed: what the seeds without a result stumbled over.
    """

    lam: str
    seeds: tuple[int, ...]
    spreads: dict[str, Spread | None]
    failed: tuple[str, ...] = ()


def finished_runs(study: Study, points: Sequence[Point]) -> list[Finished]:
    """Each finished run once, in the order of `points`."""
    found = {trial.user_attrs[POINT]: trial for trial in trials_of(study, points, "COMPLETE")}
    runs = []
    for point in points:
        if point.name in found:
            attributes = found[point.name].user_attrs
            result = attributes[RESULT]
            base = result.get("base_model") or {}
            figures = {name: result.get(name) for name in FIGURES}
            runs.append(
                Finished(
                    point,
                    figures,
                    folder=attributes.get(FOLDER, ""),
                    fingerprint=base.get("fingerprint"),
                    precision=result.get("precision"),
                    used=tuple(result["lambdas"]),
                )
            )
    return runs


def failures(study: Study, points: Sequence[Point]) -> dict[str, str]:
    """What stopped each run that failed for a reason of its own, by its name."""
    failed = trials_of(study, points, "FAIL")
    return {t.user_attrs[POINT]: t.user_attrs[ERROR] for t in failed if ERROR in t.user_attrs}


def outcomes(
    runs: Sequence[Finished], failed: dict[str, str], points: Sequence[Point]
) -> list[Outcome]:
    """One a λ: numbers by size, then words."""
    found = []
    for lam in lambda_order(list({point.lam for point in points})):
        own = [run for run in runs if run.point.lam == lam]
        reasons = [failed.get(point.name) for point in points if point.lam == lam]
        done = {run.point.name for run in own}
        found.append(
            Outcome(
                lam,
                tuple(run.point.seed for run in own),
                {name: _spread(own, name) for name in FIGURES},
                tuple(
                    reason
                    for point, reason in zip(
                        (p for p in points if p.lam == lam), reasons, strict=True
                    )
                    if reason and point.name not in done
                ),
            )
        )
    return found


def best(found: Sequence[Outcome]) -> Outcome | None:
    """The highest mean OA; of equals the smaller λ. None if no run is finished.

    Only of those with the most seeds: where some diverged, the mean is of the lucky ones.
    """
    scored = [one for one in found if one.spreads["oa"] is not None]
    most = max((len(one.seeds) for one in scored), default=0)
    full = [one for one in scored if len(one.seeds) == most]
    return max(full, key=lambda one: _mean(one), default=None)


def rivals(found: Sequence[Outcome], winner: Outcome) -> list[str] | None:
    """λ whose mean OA is within a deviation of the winner's: seeds do not tell them apart.

    None where one seed leaves no deviation to judge by.
    """
    top = winner.spreads["oa"]
    assert top is not None
    if top.deviation is None:
        return None
    near = []
    for one in found:
        oa = one.spreads["oa"]
        if one is winner or oa is None or len(one.seeds) < len(winner.seeds):
            continue
        if top.mean - oa.mean <= max(top.deviation, oa.deviation or 0.0):
            near.append(one.lam)
    return near


def passed_over(found: Sequence[Outcome], winner: Outcome) -> list[Outcome]:
    """Those of a higher mean OA, but of fewer seeds than the winner."""
    return [one for one in found if one.spreads["oa"] is not None and _mean(one) > _mean(winner)]


def outcome_json(one: Outcome) -> dict[str, Any]:
    return {
        "lambda": one.lam,
        "seeds": list(one.seeds),
        **{name: asdict(s) if s else None for name, s in one.spreads.items()},
        "failed": list(one.failed),
    }


def _mean(one: Outcome) -> float:
    oa = one.spreads["oa"]
    assert oa is not None
    return oa.mean


def _spread(runs: Sequence[Finished], name: str) -> Spread | None:
    values = [value for run in runs if (value := run.figures[name]) is not None]
    return spread(values) if values else None
