"""A document in the terminal: rich tables, coloured cells, one line a warning."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
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
    is_numeric_column,
    number,
)

# One character a value; eight heights fit a terminal line.
_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48


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
            return Text.from_markup(f"[yellow]warning:[/] {escape(part.text)}")
        return Text(part.text)
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, HeatMap):
        return _heat_map(part)
    if isinstance(part, Tree):
        return _tree(part)
    return _lines(part)


def _table(table: Table) -> Group:
    shown = _frame()
    for index, column in enumerate(table.columns):
        right = is_numeric_column(table, index)
        shown.add_column(Text(column), justify="right" if right else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell_text(cell)) for cell in row))
    return _titled(table, shown)


def _heat_map(heat_map: HeatMap) -> Group:
    shown = _frame()
    shown.add_column(Text(f"{heat_map.row_axis} \\ {heat_map.column_axis}"), style="dim")
    for column in heat_map.columns:
        shown.add_column(Text(column), justify="right")
    for name, row in zip(heat_map.rows, heat_map.values, strict=True):
        cells = [Text(name)]
        for value in row:
            style = Style()
            if value is not None:
                back = heat(heat_map.share(value), signed=heat_map.scale == "signed")
                style = Style(color=css(ink(back)), bgcolor=css(back))
            cells.append(Text(heat_map.text(value), style=style))
        shown.add_row(*cells)
    return _titled(heat_map, shown)


def _tree(tree: Tree) -> RichTree:
    shown = RichTree(Text(tree.text), guide_style="dim")
    for branch in tree.below:
        shown.add(_tree(branch))
    return shown


def _lines(lines: Lines) -> Group:
    shown = _frame()
    shown.add_column(Text(lines.y_axis))
    shown.add_column("first", justify="right")
    shown.add_column(Text(f"over {lines.x_axis}"))
    shown.add_column("last", justify="right")
    for series in lines.series:
        values = finite(series.y)
        if values:
            shown.add_row(
                Text(series.name), number(values[0]), _sparkline(values), number(values[-1])
            )
    return _titled(lines, shown)


def _frame() -> RichTable:
    return RichTable(box=None, pad_edge=False, header_style="bold")


def _titled(part: Table | HeatMap | Lines, table: RichTable) -> Group:
    """Title and note are set on their own: a narrow table would break their lines."""
    title = [Text(part.title, style="bold")] if part.title else []
    note = [Text(part.note, style="dim")] if part.note else []
    return Group(*title, table, *note)


def _sparkline(values: list[float]) -> str:
    width = min(_SPARK_WIDTH, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
    low, high = min(picked), max(picked)
    reach = (high - low) or 1.0
    return "".join(_BLOCKS[round((v - low) / reach * (len(_BLOCKS) - 1))] for v in picked)
