"""One document over one run or several: what `ella report` shows, and `ella run` at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ella_cli.report.document import Document, Section
from ella_cli.report.provenance import provenance_parts
from ella_cli.report.results import RunResults
from ella_cli.report.tables import (
    accuracy_heat_map,
    balance_parts,
    comparison,
    curve_parts,
    metrics_table,
)

_MATRIX = (
    "Each row is the model after one more task, each column a task it is tested on. Read down a "
    "column: the score should stay where it was on the diagonal."
)
_CURVES = (
    "Both curves are in nats and on one axis, so their heights can be compared: the penalty acts "
    "where it is not far below the cross-entropy."
)
_BALANCE = (
    "A penalty that is far below the cross-entropy does nothing; one that stays above it, with an "
    "update near zero, has kept the model from learning."
)
_COMPARISON = "The same tasks learned in other ways. One method's seeds are averaged."


def run_document(
    runs: Sequence[RunResults], pasts: Mapping[Path, tuple[Section, ...]] | None = None
) -> Document:
    """The report; `pasts` gives, for a run's path, the sections that show its W_past."""
    several = len(runs) > 1
    sections: list[Section] = []
    if several:
        sections.append(Section("Side by side", comparison(runs), _COMPARISON))
    for run in runs:
        own = _sections(run, (pasts or {}).get(run.path, ()))
        if several:
            own = [
                replace(section, title=f"{section.title} · {run.name}", listed=index == 0)
                for index, section in enumerate(own)
            ]
        sections += own
    first = runs[0]
    title = " → ".join(first.accuracy.order)
    subject = f"{len(runs)} runs" if several else f"{first.name}: {first.label}"
    return Document(f"{subject} · {title}", tuple(sections))


def _sections(run: RunResults, past: Sequence[Section]) -> list[Section]:
    sections = [Section("Accuracy", (accuracy_heat_map(run), metrics_table(run)), _MATRIX)]
    if run.stages:
        sections.append(Section("Learning", curve_parts(run), _CURVES))
        sections.append(Section("Penalty and update", balance_parts(run), _BALANCE))
    sections += past
    provenance = provenance_parts(run)
    if provenance:
        sections.append(Section("Settings and origin", provenance))
    return sections
