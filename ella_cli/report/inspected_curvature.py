"""Curvature and predicted rises, as sections of a document; loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ella_cli.report.document import HeatMap, Part, Section, Table, Words
from ella_cli.report.layers import layer_grid

if TYPE_CHECKING:
    from ella_cli.inspect.curvature import Rise, SequenceRises, TaskCurvature

# Nats per answer token from which a rise is called one in words.
_NOTABLE = 0.05
# Modules a task, and lines for all of them, in a table for people; --json has every module.
_WORST, _LEAST, _LINES = 8, 2, 24
_EVADED = (
    "An optimiser goes where they see little: expect several times more "
    "(docs/results/foretelling.md)."
)


def rise_section(rises: tuple[Rise, ...], adapter: str) -> Section:
    """Predicted cost of an adapter to each past task; `rises` is not empty."""
    parts: list[Part] = []
    for rise in rises:
        if rise.nats < _NOTABLE:
            continue
        times = f", {rise.nats / rise.random:.1f} times a random update" if rise.random else ""
        parts.append(
            Words(
                f"{adapter} is predicted to cost {rise.task} {rise.nats:.2g} nats an answer token"
                f"{times}; most of it in {rise.worst.name} "
                f"({rise.worst.nats:.2g})."
            )
        )
    if not parts:
        parts.append(Words(f"{adapter} is predicted to cost no past task {_NOTABLE} nats."))
    if any(rise.trained_against for rise in rises):
        parts.append(
            Words(
                f"{adapter} was trained against these estimates. {_EVADED}",
                warning=True,
            )
        )
    parts.append(
        Table(
            "predicted rise of each past task's loss",
            (
                "past task",
                "nats / token",
                "random update",
                "hardest in",
                "nats there",
                "rows",
                "importance",
            ),
            tuple(
                (
                    r.task,
                    r.nats,
                    r.random,
                    r.worst.name,
                    r.worst.nats,
                    r.rows,
                    f"{r.importance:.2g}",
                )
                for r in rises
            ),
        )
    )
    first = rises[0]
    layers, kinds, values = layer_grid([(m.name, m.nats) for m in first.modules])
    parts.append(
        HeatMap(
            f"predicted rise of {first.task}, nats",
            "layer",
            "module",
            layers,
            kinds,
            values,
            scale="signed",
        )
    )
    return Section(
        "Predicted rise",
        tuple(parts),
        "What each past task is expected to lose, to second order, from the curvature measured "
        "when it was learnt. Modules act together: a negative part takes back what others do.",
    )


def sequence_rise_section(rises: SequenceRises) -> Section:
    """Predicted cost of every update of a sequence to the tasks before it."""
    pairs = [
        (value, later, earlier)
        for later, row in zip(rises.tasks, rises.nats, strict=True)
        for earlier, value in zip(rises.tasks, row, strict=True)
        if value is not None
    ]
    worst, later, earlier = max(pairs)
    parts: list[Part] = [
        Words(
            f"The costliest: {later} is predicted to cost {earlier} {worst:.2g} nats an answer "
            "token."
        )
    ]
    if rises.trained_against:
        parts.append(
            Words(
                f"Trained against these estimates: {', '.join(rises.trained_against)}. {_EVADED}",
                warning=True,
            )
        )
    parts.append(
        HeatMap(
            "predicted rise of the loss, nats / token", "update of", "on", rises.tasks[1:],
            rises.tasks[:-1], tuple(row[:-1] for row in rises.nats[1:]),
        )
    )  # fmt: skip
    return Section(
        "Predicted cost to earlier tasks",
        tuple(parts),
        "What each update costs each task, with the curvature measured when that was learnt.",
    )


def curvature_section(tasks: tuple[TaskCurvature, ...], unmeasured: tuple[str, ...]) -> Section:
    """Where curvature sits; `tasks` is not empty."""
    parts: list[Part] = []
    for task in tasks:
        worst = max(task.modules, key=lambda one: one.share)
        parts.append(
            Words(
                f"{task.task}: {worst.share:.0%} of its curvature sits in {worst.name} "
                f"(measured on {task.rows} rows).{_counts(task)}"
            )
        )
    if unmeasured:
        parts.append(Words(f"Not measured: {', '.join(unmeasured)}.", warning=True))
    shares: dict[str, float] = {}
    for task in tasks:
        for module in task.modules:
            shares[module.name] = shares.get(module.name, 0.0) + module.share / len(tasks)
    layers, kinds, values = layer_grid(list(shares.items()))
    whose = f"{tasks[0].task}'s curvature" if len(tasks) == 1 else "the curvature, mean over tasks"
    parts.append(HeatMap(f"share of {whose}", "layer", "module", layers, kinds, values))
    parts.append(_table(tasks))
    return Section(
        "Curvature",
        tuple(parts),
        "What each task's answers depend on: tr G · tr C by module, and over how many directions.",
    )


def _counts(task: TaskCurvature) -> str:
    """What it counts in a penalty unless in full, and how well its answers tell questions apart."""
    if task.importance == 1 and task.contrast is None:
        return ""
    counts = f" Importance {task.importance:.2g}"
    if task.contrast is None:
        return f"{counts}."
    return f"{counts}; its answers cost {_more(task.contrast)} to one another's questions."


def _more(contrast: float) -> str:
    """Nats an answer, in words; what is below 0 is so by chance."""
    return f"{contrast:.2g} nats more" if contrast > 0 else "no more"


def _table(tasks: tuple[TaskCurvature, ...]) -> Table:
    most = max(_LEAST, min(_WORST, _LINES // len(tasks)))
    rows = [
        (task.task, m.name, f"{m.share:.1%}", m.g_rank, m.c_rank,
         "–" if m.g_dropped is None else f"{m.g_dropped:.1%}",
         "–" if m.c_dropped is None else f"{m.c_dropped:.1%}")
        for task in tasks
        for m in sorted(task.modules, key=lambda one: -one.share)[:most]
    ]  # fmt: skip
    return Table(
        f"the {most} modules with most of it, by task",
        ("task", "module", "share", "rank of G", "rank of C", "G dropped", "C dropped"),
        tuple(rows),
        note="ranks are effective ranks, exp of the entropy of the eigenvalues above the floor",
    )
