"""The figures of merit of a run, each with its name, its formula and how sure it is.

Intervals are 95% percentile bootstraps over test rows: every task's rows are drawn again with
replacement, the same draw for every stage, since all stages answered the same rows. They say how
much a figure would move with other test rows, not with another seed or another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ella_cli.accuracy import AccuracyMatrix
from ella_cli.report.results import RunResults

RESAMPLES = 1000
_LEVEL = 0.95
_SEED = 0


@dataclass(frozen=True)
class Metric:
    """`key` is the attribute of AccuracyMatrix and the key in results.json."""

    key: str
    label: str
    formula: str
    value: Callable[[AccuracyMatrix], float | None]
    needs: str = ""


# a[j, i] is the score on task i after training task j; METHOD of the field, K tasks.
METRICS = (
    Metric("oa", "OA", "mean over tasks of a[K, i]", lambda m: m.oa),
    Metric("bwt", "BWT", "mean over i < K of a[K, i] − a[i, i]", lambda m: m.bwt),
    Metric(
        "forgetting",
        "forgetting",
        "mean over i < K of (max over j < K of a[j, i]) − a[K, i]",
        lambda m: m.forgetting,
    ),
    Metric("learned", "learned", "mean over tasks of a[i, i]", lambda m: m.learned),
    Metric(
        "fwt_zero_shot",
        "FWT zero-shot",
        "mean over i > 1 of a[i−1, i] − base[i]",
        lambda m: m.fwt_zero_shot,
        "the base model's scores and each task's score just before it was trained",
    ),
    Metric(
        "fwt_plasticity",
        "FWT plasticity",
        "mean over i > 1 of a[i, i] − single[i]",
        lambda m: m.fwt_plasticity,
        "each task trained alone from the base model",
    ),
)


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n − 1) over seeds; the latter is None for one seed."""

    mean: float
    deviation: float | None
    seeds: int


def metric_values(run: RunResults) -> dict[str, float | None]:
    return {metric.key: metric.value(run.accuracy) for metric in METRICS}


@lru_cache(maxsize=32)
def bootstrap(run: RunResults, *, resamples: int = RESAMPLES) -> dict[str, Interval | None]:
    """Interval per metric key; None where the metric or the rows behind it are missing."""
    if not all(_has_rows(run, stage) for stage in run.accuracy.order):
        return {metric.key: None for metric in METRICS}
    draws: dict[str, list[float]] = {metric.key: [] for metric in METRICS}
    for accuracy in _resampled(run, resamples):
        for metric in METRICS:
            value = metric.value(accuracy)
            if value is not None:
                draws[metric.key].append(value)
    return {key: _interval(sample) if sample else None for key, sample in draws.items()}


def spread(values: Sequence[float]) -> Spread:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance), len(values))


def _interval(sample: list[float]) -> Interval:
    import numpy

    tail = (1 - _LEVEL) / 2
    low, high = numpy.quantile(numpy.asarray(sample), (tail, 1 - tail))
    return Interval(float(low), float(high))


def _stage_names(run: RunResults) -> tuple[str, ...]:
    return (*run.accuracy.order, "base", "single")


def _stage_row(accuracy: AccuracyMatrix, stage: str) -> Sequence[float | None]:
    if stage == "base":
        return accuracy.base or ()
    if stage == "single":
        return accuracy.single or ()
    return accuracy.matrix[accuracy.order.index(stage)]


def _has_rows(run: RunResults, stage: str) -> bool:
    """True if every cell scored at that stage has its rows, as many as the task has elsewhere."""
    for task, score in zip(run.accuracy.order, _stage_row(run.accuracy, stage), strict=False):
        counts = {len(rows[task]) for rows in run.scores.values() if task in rows}
        if score is not None and (task not in run.scores.get(stage, {}) or len(counts) != 1):
            return False
    return True


def _resampled(run: RunResults, resamples: int) -> Iterable[AccuracyMatrix]:
    """The run's accuracy matrix as other draws of the same number of test rows give it."""
    import numpy

    rng = numpy.random.default_rng(_SEED)
    order = run.accuracy.order
    means: dict[tuple[str, str], list[float]] = {}
    for task in order:
        stages = [s for s in _stage_names(run) if task in run.scores.get(s, {})]
        if not stages:
            continue
        scores = numpy.asarray([run.scores[s][task] for s in stages])  # (stages, rows)
        rows = scores.shape[1]
        counts = rng.multinomial(rows, numpy.full(rows, 1 / rows), size=resamples)
        # A mean of ones may round past 1.
        drawn = numpy.clip(scores @ counts.T / rows, 0.0, 1.0)  # (stages, resamples)
        for stage, column in zip(stages, drawn.tolist(), strict=True):
            means[stage, task] = column

    known = {
        stage: kept
        for stage in _stage_names(run)
        if (kept := _stage_row(run.accuracy, stage)) and _has_rows(run, stage)
    }

    def row(stage: str, draw: int) -> tuple[float | None, ...] | None:
        kept = known.get(stage)
        if kept is None:
            return None
        return tuple(
            None if score is None else means[stage, task][draw]
            for task, score in zip(order, kept, strict=True)
        )

    for draw in range(resamples):
        matrix = tuple(row(stage, draw) or () for stage in order)
        yield AccuracyMatrix(
            order=order,
            matrix=matrix,
            base=row("base", draw),
            single=row("single", draw),
            only_end=run.accuracy.only_end,
        )
