"""A document in the terminal: tables, coloured cells, one line a warning.

A table wider than the terminal is set in several, each beginning with the first column: figures
cut to two letters and an ellipsis help no one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text
from rich.tree import Tree as RichTree

from ella_cli.report.colours import css, heat, ink
from ella_cli.report.document import (
    Document,
    HeatMap,
    Lines,
    Part,
    Table,
    Tree,
    Words,
    cell_text,
    finite,
    number,
    numeric_columns,
)

# One character a value; eight heights fit a terminal line.
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48
_GAP = 2
# A first column longer than this is folded, so that something stands beside it.
_WIDEST_FIRST = 44


def render(document: Document) -> Group:
    shown: list[RenderableType] = [Text(document.title, style="bold")]
    for section in document.sections:
        shown.append(Rule(Text(section.title, style="bold"), align="left", style="dim"))
        if section.lead:
            shown.append(Text(section.lead, style="dim"))
        previous: Part | None = None
        for part in section.parts:
            if not (isinstance(part, Words) and isinstance(previous, Words)):
                shown.append(Text())
            shown.append(render_part(part))
            previous = part
        shown.append(Text())
    return Group(*shown)


def render_part(part: Part) -> RenderableType:
    if isinstance(part, Words):
        if part.warning:
            return Text.assemble(("warning:", "yellow"), " ", part.text)
        return Text(part.text)
    if isinstance(part, Tree):
        return _tree(part)
    if isinstance(part, Table):
        grid = _table_grid(part)
    elif isinstance(part, HeatMap):
        grid = _heat_grid(part)
    else:
        grid = _curve_grid(part)
    # Title and note are set on their own: a narrow table would break their lines.
    title = [Text(part.title, style="bold")] if part.title else []
    note = [Text(part.note, style="dim")] if part.note else []
    return Group(*title, grid, *note)


@dataclass(frozen=True)
class _Column:
    name: Text
    cells: tuple[Text, ...]
    right: bool = False

    @property
    def width(self) -> int:
        return max(cell.cell_len for cell in (self.name, *self.cells))


@dataclass(frozen=True)
class _Grid:
    """Columns side by side, in as many tables as the width asks for."""

    columns: tuple[_Column, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, *others = self.columns
        for group in _fitting(others, options.max_width - min(first.width, _WIDEST_FIRST)):
            if others and group[0] is not others[0]:
                yield Text()
            table = RichTable(
                box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold"
            )
            table.add_column(first.name, max_width=_WIDEST_FIRST, overflow="fold")
            for column in group:
                table.add_column(column.name, justify="right" if column.right else "left")
            for cells in zip(first.cells, *(column.cells for column in group), strict=True):
                table.add_row(*cells)
            yield table


def _fitting(columns: Sequence[_Column], room: int) -> Iterator[list[_Column]]:
    """Groups that fit `room`; a column wider than all of it stands alone and is folded."""
    group: list[_Column] = []
    used = 0
    for column in columns:
        if group and used + column.width + _GAP > room:
            yield group
            group, used = [], 0
        group.append(column)
        used += column.width + _GAP
    yield group


def _table_grid(table: Table) -> _Grid:
    right = numeric_columns(table)
    return _Grid(
        tuple(
            _Column(
                Text(name),
                tuple(Text(cell_text(row[index])) for row in table.rows),
                right=right[index],
            )
            for index, name in enumerate(table.columns)
        )
    )


def _heat_grid(heat_map: HeatMap) -> _Grid:
    corner = Text(f"{heat_map.row_axis} \\ {heat_map.column_axis}", style="dim")
    first = _Column(corner, tuple(Text(name) for name in heat_map.rows))
    others = [
        _Column(Text(name), tuple(_heat_cell(heat_map, row[j]) for row in heat_map.values), True)
        for j, name in enumerate(heat_map.columns)
    ]
    return _Grid((first, *others))


def _heat_cell(heat_map: HeatMap, value: float | None) -> Text:
    if value is None:
        return Text()
    back = heat(heat_map.share(value), signed=heat_map.scale == "signed")
    return Text(f" {heat_map.text(value)} ", style=Style(color=css(ink(back)), bgcolor=css(back)))


def _curve_grid(lines: Lines) -> _Grid:
    known = [(series.name, values) for series in lines.series if (values := finite(series.y))]
    return _Grid(
        (
            _Column(Text(lines.y_axis), tuple(Text(name) for name, _ in known)),
            _Column(Text("first"), tuple(Text(number(v[0])) for _, v in known), right=True),
            _Column(Text(f"over {lines.x_axis}"), tuple(Text(_sparkline(v)) for _, v in known)),
            _Column(Text("last"), tuple(Text(number(v[-1])) for _, v in known), right=True),
        )
    )


def _tree(tree: Tree) -> RichTree:
    shown = RichTree(Text(tree.text), guide_style="dim")
    for branch in tree.below:
        shown.add(_tree(branch))
    return shown


def _sparkline(values: list[float]) -> str:
    width = min(_SPARK_WIDTH, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    low, high = min(picked), max(picked)
    reach = (high - low) or 1.0
    return "".join(_BLOCKS[round((v - low) / reach * (len(_BLOCKS) - 1))] for v in picked)
