"""What `ella inspect` found of an update, a run or two files, as documents.

Takes the plain numbers that `ella_cli.inspect` computed; loads no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ella_cli.report.document import (
    Cell,
    Document,
    HeatMap,
    Part,
    Section,
    Table,
    Tree,
    Words,
    percent,
    without_empty_columns,
)
from ella_cli.report.inspected_curvature import rise_section
from ella_cli.report.inspected_past import MOST_MODULES
from ella_cli.report.layers import layer_grid

if TYPE_CHECKING:
    from ella_cli.inspect.bound import Bound, BoundReport
    from ella_cli.inspect.difference import Difference, ModuleDifference
    from ella_cli.inspect.forgetting import ForgettingReport
    from ella_cli.inspect.origin import Node, Origin
    from ella_cli.inspect.overlap import Overlap, OverlapReport
    from ella_cli.inspect.rank_correlation import RankCorrelation

# From here on a collision is called one in words.
_COLLIDES = 1.5


def overlap_document(report: OverlapReport, adapter: str, past: str) -> Document:
    parts: list[Part] = [Words(text) for text in _overlap_words(report)]
    if report.contained_as is not None:
        parts.insert(
            0,
            Words(
                f"the past already holds this adapter, as {report.contained_as}: "
                "this is its overlap with itself too",
                warning=True,
            ),
        )
    if report.tasks:
        parts.append(_overlap_table("against each past task", "task", report.tasks))
    pairs = [(m.name, m.collision) for m in report.modules if m.collision is not None]
    layers, kinds, values = layer_grid(pairs)
    parts.append(
        HeatMap(
            "collision by layer and module (1 is chance)",
            "layer",
            "module",
            layers,
            kinds,
            values,
            decimals=2,
        )
    )
    ranked = sorted(report.modules, key=lambda m: m.penalty, reverse=True)[:MOST_MODULES]
    parts.append(_overlap_table("against the whole past", "module", (report.total, *ranked)))
    sections = [Section("Overlap", tuple(parts))]
    if report.rises:
        # What it is predicted to cost comes before how it lies.
        sections.insert(0, rise_section(report.rises, report.adapter_task))
    return Document(f"overlap of {adapter} with {past}", tuple(sections))


def _overlap_words(report: OverlapReport) -> list[str]:
    total = report.total
    words = []
    if total.collision is not None:
        words.append(
            f"{report.adapter_task} pays ‖ΔW ⊙ E‖² = {total.penalty:.3g}, {total.collision:.2f} "
            "times what a random update of its size would."
        )
    if total.top_share is not None and total.top_expected is not None:
        words.append(
            f"{total.top_share:.1%} of its ‖ΔW‖² lies on the coordinates with the most energy, "
            f"where a random update has {total.top_expected:.1%}."
        )
    colliding = [t for t in report.tasks if t.collision is not None and t.collision >= _COLLIDES]
    places = dict(report.worst)
    for task in sorted(colliding, key=lambda t: -(t.collision or 0)):
        where = places[task.name]
        sign = "along" if task.inner >= 0 else "against"
        words.append(
            f"It collides with {task.name}: {task.collision:.2f} times chance, {sign} its update "
            f"(cosine {_signed(task.cosine)}), hardest in {where.name} "
            f"({where.penalty / task.penalty:.0%} of that penalty)."
        )
    if report.tasks and not colliding:
        words.append(f"It collides with no past task ({_COLLIDES} times chance or more).")
    if not report.tasks:
        words.append(f"With which task it collides is not known: {report.why_no_tasks}.")
    if report.only_in_adapter:
        words.append(
            f"{len(report.only_in_adapter)} modules of it are not in the past, such as "
            f"{report.only_in_adapter[0]}: nothing protects them."
        )
    return words


def _overlap_table(title: str, first: str, rows: tuple[Overlap, ...]) -> Table:
    table = Table(
        title=title,
        columns=(first, "‖ΔW‖", "‖W‖", "⟨ΔW, W⟩", "cosine", "‖ΔW ⊙ E‖²", "times chance",
                 "in top 1%", "by chance"),
        rows=tuple(
            (o.name, o.update_norm, o.past_norm, o.inner, _signed(o.cosine), o.penalty,
             o.collision, percent(o.top_share), percent(o.top_expected))
            for o in rows
        ),
    )  # fmt: skip
    return without_empty_columns(table)


def bound_document(report: BoundReport, adapter: str, past: str) -> Document:
    measured = report.totals[0].reference == "measured"
    parts: list[Part] = []
    if report.contained_as is not None:
        parts.append(
            Words(
                f"the past already holds this adapter, as {report.contained_as}: the "
                "bound is meant for the past before it",
                warning=True,
            )
        )
    if measured:
        verdict = (
            "it held in every module" if report.failing == 0
            else f"it failed in {report.failing} of {len(report.modules)} modules"
        )  # fmt: skip
        parts.append(
            Words(
                f"G was measured: the update trained with λ = 0. The update kept need "
                f"not be its shrinkage, so the bound could have failed; {verdict}."
            )
        )
    else:
        parts.append(
            Words(
                "G is implied by the update itself, G = X (1 + λE²): the bound is an "
                "identity check and must hold. --reference gives a measured G."
            )
        )
    if report.totals[0].reason:
        # A module that the update leaves alone has no reason of its own.
        open_ended = [one.name for one in report.modules if math.isinf(one.support)]
        parts.append(
            Words(
                f"The bound is {report.totals[0].reason}, in {len(open_ended)} of "
                f"{len(report.modules)} modules such as {open_ended[0]}.",
                warning=True,
            )
        )
    parts.append(_bound_table("by λ, all modules", "λ", report.totals, by_lam=True))
    ranked = sorted(report.modules, key=lambda b: b.tightness or 0, reverse=True)[:MOST_MODULES]
    parts.append(
        _bound_table(
            f"by module, λ = {report.totals[0].lam:g}, tightest first",
            "module",
            tuple(ranked),
            by_lam=False,
        )
    )
    lead = (
        "|⟨X, W⟩| ≤ ‖G‖ / (2 √λ) · ‖E⁻¹ ⊙ W‖. The paper prints ‖G‖², which cannot hold: scaling G "
        "scales the left side once and ‖G‖² twice."
    )
    sections = [Section("Bound", tuple(parts), lead)]
    if report.rises:
        sections.append(rise_section(report.rises, report.adapter_task))
    return Document(f"bound of {adapter} on {past}", tuple(sections))


def _bound_table(title: str, first: str, rows: tuple[Bound, ...], *, by_lam: bool) -> Table:
    table = Table(
        title=title,
        columns=(first, "|⟨X, W⟩|", "bound", "left / right", "holds", "‖G‖",
                 "|⟨G/(1+λE²), W⟩|", "cosine to G/(1+λE²)"),
        rows=tuple(
            (f"{b.lam:g}" if by_lam else b.name, abs(b.interference), b.right_side, b.tightness,
             b.holds, b.reference_norm, abs(b.shrunk_interference), _signed(b.agreement))
            for b in rows
        ),
    )  # fmt: skip
    return without_empty_columns(table)


def forgetting_document(report: ForgettingReport) -> Document:
    return Document(
        "what foretells forgetting",
        (
            Section(
                "Rank correlations with the accuracy lost",
                (
                    _correlation_table("over pairs of a stage and an earlier task", report.by_pair),
                    _correlation_table("over stages", report.by_transition),
                ),
                "Spearman's ρ: 1 if a larger figure always went with a larger loss, 0 if it said "
                "nothing. Pairs of one run are not independent.",
            ),
            Section("What they are made of", (_pair_table(report), _transition_table(report))),
        ),
    )


def _correlation_table(title: str, rows: tuple[RankCorrelation, ...]) -> Table:
    return Table(
        title=title,
        columns=("figure", "n", "ρ"),
        rows=tuple(
            (r.predictor, r.n, f"not claimed: {r.reason}" if r.rho is None else f"{r.rho:+.2f}")
            for r in rows
        ),
    )


def _pair_table(report: ForgettingReport) -> Table:
    table = Table(
        title="each stage against each earlier task",
        columns=("run", "stage", "earlier task", "accuracy lost", "predicted rise, nats", "cosine",
                 "‖ΔW ⊙ ΔW_i‖²", "times chance"),
        rows=tuple(
            (p.run, p.stage, p.earlier, _signed(p.lost), p.predicted, _signed(p.overlap.cosine),
             p.overlap.penalty, p.overlap.collision)
            for p in report.pairs
        ),
    )  # fmt: skip
    return without_empty_columns(table)


def _transition_table(report: ForgettingReport) -> Table:
    table = Table(
        title="each stage against its whole past",
        columns=("run", "stage", "λ", "mean accuracy lost", "‖ΔW‖", "⟨ΔW, W⟩", "‖ΔW ⊙ W‖²",
                 "times chance", "bound", "G"),
        rows=tuple(
            (t.run, t.stage, _lam(t.lam), _signed(t.lost), t.overlap.update_norm, t.overlap.inner,
             t.overlap.penalty, t.overlap.collision,
             None if t.bound is None else t.bound.right_side,
             None if t.bound is None else t.bound.reference)
            for t in report.transitions
        ),
        note="no bound at λ = 0, where it is infinite, or for a penalty on curvature",
    )  # fmt: skip
    return without_empty_columns(table)


def origin_document(origin: Origin) -> Document:
    parts: list[Part] = [Words(f"{text[0].upper()}{text[1:]}.") for text in origin.sentences]
    parts += [Words(f"Missing: {text}.") for text in origin.missing]
    parts.append(_tree(origin.lineage))
    return Document(origin.path, (Section(f"This {origin.kind}", tuple(parts)),))


def _tree(node: Node) -> Tree:
    return Tree(node.text, tuple(_tree(below) for below in node.below))


def difference_document(report: Difference) -> Document:
    parts: list[Part] = []
    if report.same:
        parts.append(Words(f"The two {report.kind} are equal to the bit."))
    elif report.total is not None and report.total.relative is not None:
        parts.append(
            Words(
                f"They differ by ‖A − B‖ = {report.total.difference:.4g}, "
                f"{report.total.relative:.2%} of the larger, at a cosine of "
                f"{_signed(report.total.cosine)}."
            )
        )
    for text, names in (
        ("only in A", report.only_in_a),
        ("only in B", report.only_in_b),
        ("of another shape", report.other_shape),
    ):
        if names:
            parts.append(Words(f"{len(names)} modules are {text}, such as {names[0]}", True))
    parts.append(Table("facts", ("", f"A: {report.a}", f"B: {report.b}"), report.facts))
    if report.total is not None:
        ranked = sorted(report.modules, key=lambda m: m.difference, reverse=True)[:MOST_MODULES]
        parts.append(_difference_table((report.total, *ranked)))
    return Document(f"{report.a} against {report.b}", (Section("Difference", tuple(parts)),))


def _difference_table(rows: tuple[ModuleDifference, ...]) -> Table:
    return Table(
        title="by module, furthest apart first",
        columns=("module", "‖A‖", "‖B‖", "‖A − B‖", "relative", "cosine"),
        rows=tuple(
            (m.name, m.norm_a, m.norm_b, m.difference, percent(m.relative), _signed(m.cosine))
            for m in rows
        ),
    )


def _lam(lam: float | None) -> Cell:
    return None if lam is None else f"{lam:g}"


def _signed(value: float | None) -> Cell:
    return None if value is None else f"{value:+.3f}"
