"""What `ella inspect` found in a past, as documents: energy and spectrum.

Takes the plain numbers that `ella_cli.inspect` computed; loads no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ella_cli.report.document import (
    Cell,
    Document,
    HeatMap,
    Lines,
    Part,
    Section,
    Series,
    Table,
    Words,
    percent,
    without_empty_columns,
)
from ella_cli.report.inspected_curvature import curvature_section
from ella_cli.report.layers import layer_grid

if TYPE_CHECKING:
    from ella_cli.inspect.collisions import Collisions
    from ella_cli.inspect.energy import EnergyReport, ModuleEnergy
    from ella_cli.inspect.spectrum import ModuleSpectrum, SpectrumReport, SubspaceOverlap

MOST_MODULES = 12

_ENERGY_NAMES = {
    "sum": "E = |W_past|",
    "abs": "E = Σ |ΔW|",
    "rss": "E = sqrt(Σ ΔW²)",
    "curvature": "Beside the curvature, E = |W_past|",
}


def energy_document(report: EnergyReport, name: str) -> Document:
    sections = [energy_section(report)]
    if report.curvature:
        # What protects comes first.
        place = 0 if report.kind == "curvature" else 1
        sections.insert(place, curvature_section(report.curvature, report.unmeasured))
    return Document(f"energy of {name}", tuple(sections))


def energy_section(report: EnergyReport) -> Section:
    total = report.total
    top = total.concentration.top_shares
    parts: list[Part] = [
        Words(
            f"{_energy_words(report)} over {total.concentration.count:,} coordinates of "
            f"{len(report.modules)} modules, from {_tasks(report.tasks)}. The top 1% of the "
            f"coordinates hold {top[1.0]:.1%} of ΣE², the top 10% {top[10.0]:.1%}."
        )
    ]
    if total.cancelled is not None:
        # In the sum it is gone; the other kinds count it all the same.
        lost = report.kind == "sum" and not _weights(report)
        parts.append(
            Words(
                f"{total.cancelled:.1%} of what the tasks wrote (Σ|ΔW|) cancelled between tasks of "
                f"opposite sign{'; those coordinates lost their protection' * lost}."
            )
        )
    elif report.why_no_cancelled:
        parts.append(
            Words(f"How much cancelled between tasks is not known: {report.why_no_cancelled}.")
        )
    parts += [_norm_map(report), _energy_table(report)]
    return Section("Energy", tuple(parts), "How much the tasks moved each weight, and where.")


def _energy_words(report: EnergyReport) -> str:
    name, weights = _ENERGY_NAMES[report.kind], _weights(report)
    if report.kind == "curvature" or not weights:
        return name
    summed = "E = |Σ ΔW|" if report.kind == "sum" else name
    return f"{summed}, weighed ({', '.join(weights)}),"


def _weights(report: EnergyReport) -> list[str]:
    last = [] if report.last is None else [f"the last {_count(report.last)} only"]
    decay = [] if report.decay is None else [f"times {report.decay:g} for each later task"]
    return last + decay


def _count(tasks: int) -> str:
    return "task" if tasks == 1 else f"{tasks} tasks"


def _norm_map(report: EnergyReport) -> HeatMap:
    pairs = [(m.name, m.concentration.norm) for m in report.modules]
    layers, kinds, values = layer_grid(pairs)
    return HeatMap("‖E‖ by layer and module", "layer", "module", layers, kinds, values)


def _energy_table(report: EnergyReport) -> Table:
    ranked = sorted(report.modules, key=lambda m: m.share, reverse=True)
    left_out = len(ranked) - MOST_MODULES
    note = "shares are of ΣE²; Gini of E; percentiles of E. " + report.quantiles
    if left_out > 0:
        note = f"the {MOST_MODULES} modules with the most energy; --json has the other " + (
            f"{left_out}. {note}"
        )
    table = Table(
        title="energy by module",
        columns=(
            "module",
            "share",
            "‖E‖",
            "max",
            "mean",
            "p50",
            "p99",
            "p99.9",
            "top 0.1%",
            "top 1%",
            "top 10%",
            "Gini",
            "cancelled",
        ),
        rows=tuple(_energy_row(m) for m in (report.total, *ranked[:MOST_MODULES])),
        note=note,
    )
    return without_empty_columns(table)


def _energy_row(module: ModuleEnergy) -> tuple[Cell, ...]:
    c = module.concentration
    return (
        module.name, percent(module.share), c.norm, c.largest, c.mean, c.percentiles[50.0],
        c.percentiles[99.0], c.percentiles[99.9], *(percent(s) for s in c.top_shares.values()),
        f"{c.gini:.2f}", percent(module.cancelled),
    )  # fmt: skip


def spectrum_document(report: SpectrumReport, name: str) -> Document:
    sections = [spectrum_section(report)]
    if report.curvature:
        sections.append(curvature_section(report.curvature, report.unmeasured))
    return Document(f"spectrum of {name}", tuple(sections))


def spectrum_section(report: SpectrumReport) -> Section:
    parts: list[Part] = []
    if report.task_shares:
        parts.append(_share_words(report))
    elif report.why_no_tasks:
        parts.append(Words(f"No task can be told from another here: {report.why_no_tasks}."))
    parts.append(_spectrum_lines(report))
    for overlap in report.overlaps:
        parts += _overlap_maps(report.tasks, overlap)
    parts.append(_spectrum_table(report))
    return Section(
        "Spectrum",
        tuple(parts),
        "How many directions Σ ΔW uses, which task holds them, and which tasks share them.",
    )


def _share_words(report: SpectrumReport) -> Words:
    shares = ", ".join(
        f"{task} {share:.1%}" for task, share in zip(report.tasks, report.task_shares, strict=True)
    )
    return Words(
        f"Of the {report.leading} leading directions of each module, weighted by σ²: "
        f"{shares}. (A negative part works against the sum.)"
    )


def _spectrum_lines(report: SpectrumReport) -> Lines:
    """The modules with the largest σ₁; more curves than that cannot be told apart."""
    ranked = sorted(report.modules, key=lambda m: m.singular_values[:1], reverse=True)[:6]
    return Lines(
        title="singular values",
        x_axis="index of the direction",
        y_axis="σ",
        series=tuple(
            Series(m.name, tuple(range(1, len(m.singular_values) + 1)), m.singular_values)
            for m in ranked
        ),
        logarithmic=True,
        note="the modules with the largest σ₁; values below a millionth of it are rounding",
    )


def _overlap_maps(tasks: tuple[str, ...], overlap: SubspaceOverlap) -> list[Part]:
    return [
        HeatMap(
            title=f"directions shared by tasks: {overlap.side}",
            row_axis="task",
            column_axis="task",
            rows=tasks,
            columns=tasks,
            values=overlap.shared,
            scale="unit",
            decimals=3,
            note="mean squared cosine of the principal angles, mean over modules; random spaces "
            f"of the same rank share {overlap.chance:.3f}",
        ),
        HeatMap(
            title=f"smallest principal angle: {overlap.side}",
            row_axis="task",
            column_axis="task",
            rows=tasks,
            columns=tasks,
            values=overlap.angles,
            decimals=1,
            note="degrees, mean over modules; 0 is a direction in common, 90 none",
        ),
    ]


def _spectrum_table(report: SpectrumReport) -> Table:
    ranked = sorted(report.modules, key=lambda m: m.singular_values[:1], reverse=True)
    methods = sorted({m.method for m in report.modules})
    missed = max((m.missed for m in report.modules), default=0.0)
    note = f"computed by: {', '.join(methods)}; left out at most {missed:.1e} of ‖W‖"
    if len(ranked) > MOST_MODULES:
        note = f"the {MOST_MODULES} with the largest σ₁; --json has all {len(ranked)}; {note}"
    table = Table(
        title="spectrum by module",
        columns=("module", "σ₁", "σ₂", "rank", "effective rank", "stable rank", *report.tasks),
        rows=tuple(_spectrum_row(m, len(report.tasks)) for m in ranked[:MOST_MODULES]),
        note=note,
    )
    return without_empty_columns(table)


def _spectrum_row(module: ModuleSpectrum, tasks: int) -> tuple[Cell, ...]:
    values = module.singular_values
    shares: Sequence[Cell] = [percent(share) for share in module.task_shares] or [None] * tasks
    return (
        module.name,
        values[0] if values else 0.0,
        values[1] if len(values) > 1 else None,
        len(values),
        module.effective_rank,
        module.stable_rank,
        *shares,
    )


def collision_section(report: Collisions) -> Section:
    """Which tasks use the same coordinates, and whether they pull the same way."""
    maps = (
        HeatMap("same coordinates: ‖ΔW_i ⊙ ΔW_j‖² over chance", "task", "task", report.tasks,
                report.tasks, report.collision, decimals=2, note="1 is chance; the diagonal is "
                "a task with itself"),
        HeatMap("same direction: cosine of ΔW_i and ΔW_j", "task", "task", report.tasks,
                report.tasks, report.cosine, scale="signed", decimals=3),
    )  # fmt: skip
    return Section("Overlap between tasks", maps, "What the penalty sees, and what it does not.")


def _tasks(tasks: tuple[str, ...]) -> str:
    return f"{len(tasks)} tasks ({', '.join(tasks)})" if len(tasks) != 1 else f"task {tasks[0]}"
