"""The tables of a run and of several: accuracy matrix, figures of merit, curves.

Each function gives parts of a document; `terminal`, `markdown` and `html` draw them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ella_cli.report.document import (
    Cell,
    HeatMap,
    Lines,
    Part,
    Series,
    Table,
    Words,
    without_empty_columns,
)
from ella_cli.report.groups import Group, groups_of
from ella_cli.report.metrics import METRICS, Interval, Spread, bootstrap, metric_values, spread
from ella_cli.report.results import RunResults
from ella_cli.report.signs import balances, ratio, signs

_BASE_ROW = "untouched base"
_SINGLE_ROW = "trained alone"
_ALL_ROW = "all tasks"


def accuracy_heat_map(run: RunResults) -> HeatMap:
    accuracy = run.accuracy
    rows = [f"{index}. {task}" for index, task in enumerate(accuracy.order, start=1)]
    values = [tuple(row) for row in accuracy.matrix]
    if len(rows) > 1 and not any(score is not None for row in values[:-1] for score in row):
        # Trained on all of them at once, or one past of all: there is no last one.
        rows, values = [_ALL_ROW], values[-1:]
    if accuracy.base is not None:
        rows.insert(0, _BASE_ROW)
        values.insert(0, accuracy.base)
    if accuracy.single is not None:
        rows.append(_SINGLE_ROW)
        values.append(accuracy.single)
    counts = sorted(set(run.test_rows.values()))
    between = "–".join(str(count) for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    kind = "held-out train rows" if run.document.get("validation") else "test rows"
    tested = f", {between} {kind} a task"
    if run.document.get("header"):
        tested += ", prompts with the header"
    return HeatMap(
        title=f"score on each task ({run.label})",
        row_axis="after training",
        column_axis="tested on",
        rows=tuple(rows),
        columns=accuracy.order,
        values=tuple(values),
        scale="unit",
        decimals=3,
        note=f"0 to 1; decoded: {run.decode}{tested if counts else ''}",
    )


def metrics_table(run: RunResults, *, definitions: bool = True) -> Table:
    """`definitions` adds each figure's formula, which a narrow terminal has no room for."""
    values, intervals = metric_values(run), bootstrap(run)
    columns = ("figure", "value", "95% over rows") + ("definition",) * definitions
    rows = []
    for m in METRICS:
        row = (m.label, _value(values[m.key]), _interval(intervals[m.key]))
        rows.append((*row, m.formula) if definitions else row)
    notes = [
        "intervals: bootstrap over the rows scored; the maximum in forgetting biases it upwards"
    ]
    if values["forgetting"] is not None and run.accuracy.unseen_by_forgetting:
        notes.append("forgetting is from the cells that were scored: a lower bound")
    notes += [f"{m.label} needs {m.needs}" for m in METRICS if m.needs and values[m.key] is None]
    return Table("figures of merit", columns, tuple(rows), "; ".join(notes))


def comparison(runs: Sequence[RunResults]) -> tuple[Part, ...]:
    """Methods side by side: the figures, then each task's score at the end."""
    groups = groups_of(runs)
    figures: list[tuple[Cell, ...]] = []
    for group in groups:
        cells = [_spread(group.spread(m)) for m in METRICS]
        figures.append((group.name, len(group.runs), *cells))
    parts: list[Part] = [
        Table(
            title="runs side by side",
            columns=("method", "seeds", *(m.label for m in METRICS)),
            rows=tuple(figures),
            note="; ".join(_comparison_notes(groups)),
        )
    ]
    unknown = [group for group in groups if len(group.runs) > 1 and not group.settings_known]
    if unknown:
        averaged = "; ".join(", ".join(run.name for run in group.runs) for group in unknown)
        parts.append(Words(f"settings not known, averaged by name: {averaged}", True))
    orders = {run.accuracy.order for run in runs}
    if len(orders) > 1:
        parts.append(
            Words("these runs have different task orders: their figures are not comparable", True)
        )
    decodes = {run.decode for run in runs}
    if len(decodes) > 1:
        parts.append(
            Words(f"these runs were decoded differently: {'; '.join(sorted(decodes))}", True)
        )
    parts.append(_final_scores(groups))
    return tuple(parts)


def _comparison_notes(groups: Sequence[Group]) -> list[str]:
    notes = ["mean ± sample deviation over seeds; one seed stands alone"]
    known = [g for g in groups if all(run.accuracy.forgetting is not None for run in g.runs)]
    bounds = [group.name for group in known if len(group.unseen) == 1 and any(group.unseen)]
    if bounds:
        whose = f" of {', '.join(bounds)}" if len(bounds) < len(groups) else ""
        notes.append(f"forgetting{whose} is from the cells that were scored: a lower bound")
    unlike = [group.name for group in known if len(group.unseen) > 1]
    if unlike:
        whose = ", ".join(unlike)
        notes.append(f"forgetting of {whose} is not averaged: its seeds were scored in other cells")
    return notes


def _final_scores(groups: Sequence[Group]) -> HeatMap:
    tasks = list(dict.fromkeys(t for group in groups for t in group.runs[0].accuracy.order))
    values = []
    for group in groups:
        row: list[float | None] = []
        for task in tasks:
            scores = [_final(run, task) for run in group.runs]
            present = [s for s in scores if s is not None]
            row.append(spread(present).mean if present else None)
        values.append(tuple(row))
    return HeatMap(
        title="score on each task after the last",
        row_axis="method",
        column_axis="task",
        rows=tuple(group.name for group in groups),
        columns=tuple(tasks),
        values=tuple(values),
        scale="unit",
        decimals=3,
    )


def _final(run: RunResults, task: str) -> float | None:
    accuracy = run.accuracy
    return accuracy.matrix[-1][accuracy.order.index(task)] if task in accuracy.order else None


def curve_parts(run: RunResults) -> tuple[Part, ...]:
    """One panel a task: cross-entropy and λ · penalty, in the loss's own units."""
    parts: list[Part] = []
    for index, stage in enumerate(run.stages, start=1):
        curves = stage.curves
        series = [Series("cross-entropy", curves.step, curves.ce)]
        if any(v for v in curves.weighted_penalty):
            series.append(Series("λ · penalty", curves.step, curves.weighted_penalty))
        if curves.step:
            parts.append(
                Lines(f"{index}. {stage.task}", "optimizer step", "loss (nats)", tuple(series))
            )
    return tuple(parts)


def balance_parts(run: RunResults) -> tuple[Part, ...]:
    """Penalty against cross-entropy, and the update's size: curves, a table, and the warnings."""
    parts: list[Part] = [Words(sign.text, warning=True) for sign in signs(run)]
    names = [f"{i}. {stage.task}" for i, stage in enumerate(run.stages, start=1)]
    ratios = tuple(
        Series(name, stage.curves.step, ratio(stage))
        for name, stage in zip(names, run.stages, strict=True)
    )
    if any(any(series.y) for series in ratios):
        parts.append(
            Lines(
                "λ · penalty / cross-entropy",
                "optimizer step",
                "ratio (no unit)",
                ratios,
                logarithmic=True,
                note="0 is not drawn: B starts at 0",
            )
        )
    norms = tuple(
        Series(name, stage.curves.step, stage.curves.update_norm)
        for name, stage in zip(names, run.stages, strict=True)
    )
    if any(any(series.y) for series in norms):
        parts.append(Lines("size of the update", "optimizer step", "‖ΔW‖ (Frobenius)", norms))
    parts.append(_balance_table(run))
    return tuple(parts)


def _balance_table(run: RunResults) -> Table:
    rows = tuple(
        (
            b.task,
            None if b.lam is None else f"{b.lam:g}",
            b.ce_start,
            b.ce_end,
            b.weighted_penalty_end,
            b.ratio_end,
            b.ratio_largest,
            b.update_norm,
            stage.seconds,
        )
        for b, stage in zip(balances(run), run.stages, strict=True)
    )
    table = Table(
        title="how each task's training ended",
        columns=(
            "task",
            "λ",
            "CE at first (nats)",
            "CE at the end (nats)",
            "λ · penalty (nats)",
            "penalty / CE",
            "its largest",
            "‖ΔW‖",
            "time (s)",
        ),
        rows=rows,
        note="first and end: means over a tenth of the logged steps",
    )
    return without_empty_columns(table)


def _value(value: float | None) -> Cell:
    return None if value is None else f"{value:z.3f}"


def _interval(interval: Interval | None) -> Cell:
    return None if interval is None else f"{interval.low:z.3f} to {interval.high:z.3f}"


def _spread(result: Spread | None) -> Cell:
    if result is None:
        return None
    if result.deviation is None:
        return f"{result.mean:z.3f}"
    return f"{result.mean:z.3f} ± {result.deviation:z.3f}"
