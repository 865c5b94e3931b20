"""What is shown, before it is a terminal page, Markdown, HTML or a picture.

    Document
    └── Section          a title, a sentence that says how to read it, parts
        ├── Words        a sentence; plain, or a warning
        ├── Table        named columns, rows of text and numbers
        ├── HeatMap      numbers in two named directions, coloured and printed
        ├── Tree         one thing built on another
        └── Lines        curves over a named horizontal axis

Parts are plain values; the renderers beside this file (terminal, markdown, html, figure) each draw
every kind of part. No tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?%?( ± [\d.]+)?")

Cell = str | int | float | bool | None
Scale = Literal["unit", "positive", "signed"]
"""How a heat map is coloured: 0 to 1, 0 to its largest value, or symmetric about 0."""


@dataclass(frozen=True)
class Words:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """`columns` name what they hold, with the unit; every row has one cell a column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title


@dataclass(frozen=True)
class HeatMap:
    """`values[i][j]` belongs to `rows[i]` and `columns[j]`; None is a cell without a value."""

    title: str
    row_axis: str
    column_axis: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    scale: Scale = "positive"
    decimals: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.rows), self.title
        assert all(len(row) == len(self.columns) for row in self.values), self.title

    def share(self, value: float) -> float:
        """Where `value` lies on the colour scale, in [0, 1]."""
        if self.scale == "unit":
            return min(1.0, max(0.0, value))
        present = [abs(v) for row in self.values for v in row if v is not None]
        largest = max(present, default=0.0)
        if largest == 0.0:
            return 0.5 if self.scale == "signed" else 0.0
        if self.scale == "signed":
            return 0.5 + 0.5 * value / largest
        return min(1.0, max(0.0, value / largest))

    def text(self, value: float | None) -> str:
        if value is None:
            return ""
        return number(value) if self.decimals is None else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class Series:
    """A curve; the sequences are equally long. Values that are None are gaps.

    `spread` is drawn as a bar from y - spread to y + spread; empty, there are no bars.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    spread: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.x) == len(self.y), self.name
        assert len(self.spread) in (0, len(self.x)), self.name


@dataclass(frozen=True)
class Lines:
    """Curves that share their axes; `logarithmic` is the vertical axis. Axis names carry units.

    `x_ticks` name places on the horizontal axis; empty, it is numbered.
    """

    title: str
    x_axis: str
    y_axis: str
    series: tuple[Series, ...]
    logarithmic: bool = False
    note: str = ""
    x_ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Tree:
    text: str
    below: tuple[Tree, ...] = ()


Part = Words | Table | HeatMap | Tree | Lines


@dataclass(frozen=True)
class Section:
    """`listed` sections are those that a long page's index names."""

    title: str
    parts: tuple[Part, ...]
    lead: str = ""
    listed: bool = True


@dataclass(frozen=True)
class Document:
    title: str
    sections: tuple[Section, ...]


def number(value: float) -> str:
    """Four significant digits, all before the point where there are more; powers of ten outside
    0.001 to 99,999.
    """
    if math.isnan(value):
        return "nan"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:.{digits}f}"
    return f"{value:.3g}"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def cell_text(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return cell if isinstance(cell, str) else number(cell)


def without_empty_columns(table: Table) -> Table:
    """The table less the columns that hold nothing in any row."""
    kept = [
        index
        for index in range(len(table.columns))
        if any(row[index] is not None for row in table.rows) or not table.rows
    ]
    return replace(
        table,
        columns=tuple(table.columns[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in table.rows),
    )


def numeric_columns(table: Table) -> list[bool]:
    """Of each column whether it holds numbers only (and gaps), so that it is set flush right."""
    columns = ([row[i] for row in table.rows] for i in range(len(table.columns)))
    known = ([cell for cell in column if cell is not None] for column in columns)
    return [bool(cells) and all(_is_number(cell) for cell in cells) for cells in known]


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return _NUMBER.fullmatch(cell) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def bars(series: Series) -> list[tuple[float, float, float]]:
    """Where a series has a spread: x, and the bar's two ends."""
    triples = zip(series.x, series.y, series.spread, strict=False)
    return [(x, y - s, y + s) for x, y, s in triples if y is not None and s is not None]


def finite(values: Sequence[float | None]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]
