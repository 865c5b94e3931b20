"""What foretells forgetting: bound, overlap and size of an update beside the accuracy then lost.

Over runs of `ella run`. For each stage t and each earlier task i, the accuracy lost is
a[t−1, i] − a[t, i], set beside what ΔW_t shares with ΔW_i. For each stage as a whole, the mean loss
over the earlier tasks is set beside the bound and the overlap with W_past = Σ_{i<t} ΔW_i.
Rank correlations pool all runs given. Pairs within a run are not independent of each other, so n
says how many pairs there are, not how much evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ella_cli.adapter import Adapter
from ella_cli.errors import SettingsError
from ella_cli.inspect.bound import (
    Bound,
    Sums,
    bound_of,
    check_reference,
    module_sums,
    trained_lambda,
)
from ella_cli.inspect.curvature import predicted_rise
from ella_cli.inspect.overlap import Overlap, between, together
from ella_cli.inspect.products import as_factors, total
from ella_cli.inspect.rank_correlation import RankCorrelation, rank_correlation
from ella_cli.inspect.run_stages import RunStages, read_run_stages
from ella_cli.kernels import Factors
from ella_cli.past.record import EnergyKind


@dataclass(frozen=True)
class Pair:
    """One stage and one earlier task.

    Attributes:
        lost: accuracy, None where a score was not run.
        predicted: rise of the earlier task's loss, nats per answer token, from its curvature; None
            where that was not measured.
    """

    run: str
    stage: str
    earlier: str
    lost: float | None
    overlap: Overlap
    predicted: float | None = None


@dataclass(frozen=True)
class Transition:
    """One stage against everything before it.

    `bound` is None at λ = 0, where it is infinite, and for a penalty on anything but the sum of the
    past updates, which has none or another.
    """

    run: str
    stage: str
    lam: float | None
    lost: float | None
    overlap: Overlap
    bound: Bound | None


@dataclass(frozen=True)
class ForgettingReport:
    pairs: tuple[Pair, ...]
    transitions: tuple[Transition, ...]
    by_pair: tuple[RankCorrelation, ...]
    by_transition: tuple[RankCorrelation, ...]


def forgetting_of(runs: Sequence[Path], reference: Path | None = None) -> ForgettingReport:
    """
    Args:
        runs: folders of `ella run`, trained and scored.
        reference: a run of the same order at λ = 0, whose updates are taken for G; without it G is
            implied. Beyond its second stage such a run starts from another past, so its G is
            exact for the first transition and an approximation after it.

    Raises:
        SettingsError: no transition to look at, a run twice, or a reference of another order.
        ShapeError: the reference adapts other modules.
        StorageError, AdapterError: a run cannot be read.
    """
    resolved = [run.resolve() for run in runs]
    for one in resolved:
        if resolved.count(one) > 1:
            raise SettingsError(f"{one.name} is named twice", hint="name each run once")
    stages = [read_run_stages(run) for run in runs]
    for run in stages:
        if not run.is_summed:
            raise SettingsError(
                f"{run.path} is a run of {run.method}, whose stages do not add up to its model",
                hint="name runs of ella, inclora or another method that sums its updates",
            )
    other = None if reference is None else read_run_stages(reference)
    if other is not None and not other.is_summed:
        raise SettingsError(
            f"{other.path} is a run of {other.method}, which starts no task from its past",
            hint="the reference is a run of inclora, or of ella with λ = 0",
        )
    for run in stages:
        if other is not None and other.order != run.order:
            raise SettingsError(
                f"{other.path} ran {', '.join(other.order)}, {run.path} ran {', '.join(run.order)}",
                hint="the reference is a run of the same order with λ = 0",
            )
    pairs: list[Pair] = []
    transitions: list[Transition] = []
    for run, label in zip(stages, _labels(resolved), strict=True):
        for t in range(1, len(run.order)):
            found = _transition(run, label, t, other)
            if found is not None:
                transitions.append(found[0])
                pairs += found[1]
    if not transitions:
        raise SettingsError(
            "these runs have no second stage to look at", hint="name runs of two tasks or more"
        )
    return ForgettingReport(
        tuple(pairs), tuple(transitions), _pair_correlations(pairs), _correlations(transitions)
    )


def _labels(runs: Sequence[Path]) -> list[str]:
    """Names of the runs' folders, with as many folders above them as tell them apart."""
    depth = 1
    while len({run.parts[-depth:] for run in runs}) < len(runs):
        depth += 1
    return ["/".join(run.parts[-depth:]) for run in runs]


def _transition(
    run: RunStages, label: str, t: int, reference: RunStages | None
) -> tuple[Transition, list[Pair]] | None:
    """None where an adapter up to stage t is missing."""
    known = [adapter for adapter in run.adapters[: t + 1] if adapter is not None]
    if len(known) <= t:
        return None
    update, earlier = known[t], known[:t]
    lam = (update.manifest or {}).get("lambda")
    # Σ ΔW_i is the energy only where all tasks count alike and may cancel.
    lams = trained_lambda(update) if _protects_the_sum(run) else ()
    bound_lam = lams[0] if lams else None
    ideal = reference.adapters[t] if reference is not None else None
    if ideal is not None:
        check_reference(update, update.names, ideal)
    parts: list[Overlap] = []
    by_task: list[list[Overlap]] = [[] for _ in earlier]
    sums = Sums()
    for name in update.names:
        factors = as_factors(update.update(name))
        each = [as_factors(a.update(name)) if name in a.sources else None for a in earlier]
        present = [one for one in each if one is not None]
        if not present:
            continue
        past = total(present)
        parts.append(between(name, factors, past))
        for found, one in zip(by_task, each, strict=True):
            if one is not None:
                found.append(between(name, factors, one))
        if bound_lam is not None:
            sums += module_sums(factors, past, past, bound_lam, _reference(ideal, name))
    bound = (
        None
        if bound_lam is None
        else bound_of("all modules", bound_lam, sums, measured=ideal is not None)
    )
    pairs = [
        Pair(
            label,
            run.order[t],
            task,
            _lost(run, t, i),
            together(task, found),
            predicted_rise(update, earlier[i]),
        )
        for i, (task, found) in enumerate(zip(run.order[:t], by_task, strict=True))
    ]
    overlap = together("all modules", parts)
    lost = _mean([pair.lost for pair in pairs])
    return Transition(label, run.order[t], lam, lost, overlap, bound), pairs


def _protects_the_sum(run: RunStages) -> bool:
    settings = run.record.get("settings") or {}
    weighs = EnergyKind.asked("sum", settings.get("last"), settings.get("decay")).weighs
    return settings.get("energy") in (None, "sum") and not weighs


def _reference(adapter: Adapter | None, name: str) -> Factors | None:
    return None if adapter is None else as_factors(adapter.update(name))


def _lost(run: RunStages, t: int, i: int) -> float | None:
    if run.accuracy is None:
        return None
    before, after = run.accuracy.matrix[t - 1][i], run.accuracy.matrix[t][i]
    return None if before is None or after is None else before - after


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


_OF_OVERLAP: tuple[tuple[str, Callable[[Overlap], float | None]], ...] = (
    ("‖ΔW‖", lambda o: o.update_norm),
    ("|⟨ΔW, W⟩|", lambda o: abs(o.inner)),
    ("⟨ΔW, W⟩, negative first", lambda o: -o.inner),
    ("|cosine|", lambda o: None if o.cosine is None else abs(o.cosine)),
    ("‖ΔW ⊙ W‖²", lambda o: o.penalty),
    ("‖ΔW ⊙ W‖² over chance", lambda o: o.collision),
)


def _pair_correlations(pairs: Sequence[Pair]) -> tuple[RankCorrelation, ...]:
    lost = [pair.lost for pair in pairs]
    found = [
        rank_correlation(name, [of(pair.overlap) for pair in pairs], lost)
        for name, of in _OF_OVERLAP
    ]
    predicted = [pair.predicted for pair in pairs]
    if any(value is not None for value in predicted):
        found.insert(0, rank_correlation("predicted rise (curvature)", predicted, lost))
    return tuple(found)


def _correlations(transitions: Sequence[Transition]) -> tuple[RankCorrelation, ...]:
    lost = [one.lost for one in transitions]
    bounds = [None if one.bound is None else one.bound.right_side for one in transitions]
    return (
        rank_correlation("bound (right side)", bounds, lost),
        *(
            rank_correlation(name, [of(one.overlap) for one in transitions], lost)
            for name, of in _OF_OVERLAP
        ),
    )
