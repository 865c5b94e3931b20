"""One document over one run or several: what `ella report` shows, and `ella run` at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ella_cli.report.document import Document, Part, Section
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
    runs: Sequence[RunResults], pasts: Mapping[str, tuple[Part, ...]] | None = None
) -> Document:
    """The report; `pasts` gives, for a run's name, the parts that show its W_past."""
    pasts = pasts or {}
    several = len(runs) > 1
    sections: list[Section] = []
    if several:
        sections.append(Section("Side by side", comparison(runs), _COMPARISON))
    for run in runs:
        name = f" · {run.name}" if several else ""
        sections.append(
            Section(f"Accuracy{name}", (accuracy_heat_map(run), metrics_table(run)), _MATRIX)
        )
        if run.stages:
            sections.append(Section(f"Learning{name}", curve_parts(run), _CURVES))
            sections.append(Section(f"Penalty and update{name}", balance_parts(run), _BALANCE))
        if pasts.get(run.name):
            sections.append(Section(f"The past{name}", pasts[run.name]))
        provenance = provenance_parts(run)
        if provenance:
            sections.append(Section(f"Settings and origin{name}", provenance))
    first = runs[0]
    title = " → ".join(first.accuracy.order)
    subject = f"{len(runs)} runs" if several else f"{first.name}: {first.label}"
    return Document(f"{subject} · {title}", tuple(sections))
