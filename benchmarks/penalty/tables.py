"""The results as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.penalty.auto import Cell
from ella_cli.files import replacing, write_json, write_text

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Measured:
    """One row of the table; times are of one call, loss and both gradients of the whole set."""

    shapes: str
    past_tasks: int
    provider: str
    form: str
    dtype: str
    ms_median: float
    ms_least: float
    past_bytes: int
    peak_extra_bytes: int
    gb_per_second: float
    share_of_copy: float
    times_faster_than_eager: float


def with_ratios(rows: list[Measured]) -> list[Measured]:
    eager = {row.shapes: row.ms_median for row in rows if row.provider == "eager autograd"}
    return [replace(row, times_faster_than_eager=eager[row.shapes] / row.ms_median) for row in rows]


def write_tables(
    name: str, rows: list[Measured], facts: dict[str, object], grid: list[Cell]
) -> None:
    document = {
        **facts,
        "rows": [asdict(row) for row in rows],
        "auto_grid": [asdict(cell) for cell in grid],
    }
    write_json(RESULTS / f"penalty-{name}.json", document)
    with replacing(RESULTS / f"penalty-{name}.csv") as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    write_text(RESULTS / f"penalty-{name}.md", markdown(rows, facts, grid))


def markdown(rows: list[Measured], facts: dict[str, object], grid: list[Cell]) -> str:
    lines = ["# The penalty: loss and both gradients", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if not isinstance(value, dict)]
    lines += [
        "",
        "| shapes | past tasks | provider | form | ms (median) | ms (least) | peak extra, MB "
        "| GB/s | of copy | × eager |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r.shapes} | {r.past_tasks} | {r.provider} | {r.form} | {r.ms_median:.2f} "
        f"| {r.ms_least:.2f} | {r.peak_extra_bytes / 1e6:.2f} | {r.gb_per_second:.2f} "
        f"| {r.share_of_copy:.0%} | {r.times_faster_than_eager:.1f} |"
        for r in rows
    ]
    if grid:
        lines += ["", *auto_lines(grid)]
    return "\n".join(lines) + "\n"


def auto_lines(grid: list[Cell]) -> list[str]:
    """The worst choices of `auto`, and how many are how far from the best form."""
    worst = sorted(grid, key=lambda cell: -cell.auto_over_best)
    counts = [sum(cell.auto_over_best <= limit for cell in grid) for limit in (1.0, 1.1, 1.3)]
    return [
        f"`auto` over the best form, {len(grid)} cells of M, N, R, R_past and number of modules: "
        f"best itself in {counts[0]}, within 1.1 in {counts[1]}, within 1.3 in {counts[2]}; "
        f"worst {worst[0].auto_over_best:.2f}.",
        "",
        "| modules | M × N | R | R_past | auto | best | auto / best |",
        "|--:|---|--:|--:|---|---|--:|",
        *(
            f"| {c.modules} | {c.M} × {c.N} | {c.R} | {c.R_past} | {c.auto} | {c.best} "
            f"| {c.auto_over_best:.2f} |"
            for c in worst[:10]
        ),
    ]
