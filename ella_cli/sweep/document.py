"""A sweep as a document: a table, and OA and BWT against λ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ella_cli.report.document import Document, Lines, Part, Section, Series, Table, Words
from ella_cli.report.metrics import METRICS, Spread
from ella_cli.sweep.outcome import FIGURES, Outcome, best, passed_over, rivals
from ella_cli.sweep.points import Point

_LABELS = {metric.key: metric.label for metric in METRICS}
_LEAD = (
    "Scores are those of rows held out of train; no test row was used. λ = 0 and words stand "
    "beside the logarithmic axis."
)


def sweep_document(title: str, found: Sequence[Outcome]) -> Document:
    parts: list[Part] = [*verdict(found), outcome_table(found), *curves(found)]
    return Document(title, (Section("λ", tuple(parts), _LEAD),))


def verdict(found: Sequence[Outcome]) -> list[Words]:
    """The best λ in words, with those that the seeds do not tell from it, and what failed."""
    words = []
    winner = best(found)
    if winner is not None and (oa := winner.spreads["oa"]) is not None:
        near = rivals(found, winner)
        if near is None:
            beside = "; one seed says nothing about how sure that is"
        elif near:
            beside = f"; within one deviation of it: {', '.join(near)}"
        else:
            beside = "; no other is within one deviation of it"
        words.append(Words(f"best mean OA at λ = {winner.lam}: {_text(oa)}{beside}"))
        words += [
            Words(
                f"λ = {one.lam} has a higher mean, of {len(one.seeds)} seeds instead of "
                f"{len(winner.seeds)}, and was passed over"
            )
            for one in passed_over(found, winner)
        ]
    words += [
        Words(f"λ = {one.lam}: {reason}", warning=True) for one in found for reason in one.failed
    ]
    return words


def outcome_table(found: Sequence[Outcome]) -> Table:
    rows = tuple(
        (one.lam, len(one.seeds), *(_cell(one.spreads[name]) for name in FIGURES)) for one in found
    )
    return Table(
        title="held-out scores against λ",
        columns=("λ", "seeds", *(_LABELS[name] for name in FIGURES)),
        rows=rows,
        note="mean ± sample deviation over seeds; one seed stands alone",
    )


def curves(found: Sequence[Outcome]) -> list[Lines]:
    """OA and BWT, a panel each."""
    places = _places([one.lam for one in found])
    ticks = tuple((place, lam) for lam, place in places.items())
    panels = []
    for name in ("oa", "bwt"):
        scored = [(places[one.lam], s) for one in found if (s := one.spreads[name]) is not None]
        series = Series(
            _LABELS[name],
            tuple(place for place, _ in scored),
            tuple(spread.mean for _, spread in scored),
            tuple(spread.deviation for _, spread in scored),
        )
        title = f"{_LABELS[name]} against λ"
        panels.append(Lines(title, "λ", f"{_LABELS[name]} (mean)", (series,), x_ticks=ticks))
    return panels


def _places(lams: Sequence[str]) -> dict[str, float]:
    """Where each λ stands: numbers by their logarithm, 0 one decade before, words after."""
    numbers = {lam: Point(lam, 0).number for lam in lams}
    logs = {lam: math.log10(value) for lam, value in numbers.items() if value}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    places = {}
    for lam in lams:
        if lam in logs:
            places[lam] = logs[lam]
        elif numbers[lam] is not None:
            places[lam] = low - 1
        else:
            high += 1
            places[lam] = high
    return places


def _cell(value: Spread | None) -> str | None:
    return None if value is None else _text(value)


def _text(value: Spread) -> str:
    mean = f"{value.mean:.3f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.3f}"
