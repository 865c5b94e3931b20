"""A document as Markdown: GitHub's tables; curves as their first, lowest and last value."""

from __future__ import annotations

from collections.abc import Sequence

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
    numeric_columns,
)


def render(document: Document) -> str:
    blocks = [f"# {_inline(document.title)}"]
    for section in document.sections:
        blocks.append(f"## {_inline(section.title)}")
        if section.lead:
            blocks.append(_inline(section.lead))
        blocks.extend(render_part(part) for part in section.parts)
    return "\n\n".join(blocks) + "\n"


def render_part(part: Part) -> str:
    if isinstance(part, Words):
        return f"> **Warning:** {_inline(part.text)}" if part.warning else _inline(part.text)
    if isinstance(part, Table):
        return _titled(part.title, _table(part), part.note)
    if isinstance(part, HeatMap):
        return _titled(part.title, _table(_as_table(part)), part.note)
    if isinstance(part, Tree):
        return "\n".join(_tree(part, 0))
    return _titled(part.title, _table(_curve_table(part)), part.note)


def _titled(title: str, body: str, note: str) -> str:
    parts = [f"**{_inline(title)}**"] if title else []
    parts.append(body)
    if note:
        parts.append(f"*{_inline(note)}*")
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    rule = ["---:" if numeric else "---" for numeric in numeric_columns(table)]
    lines = [_row(table.columns), _row(rule, literal=True)]
    lines.extend(_row([cell_text(cell) for cell in row]) for row in table.rows)
    return "\n".join(lines)


def _as_table(heat_map: HeatMap) -> Table:
    columns = (f"{heat_map.row_axis} / {heat_map.column_axis}", *heat_map.columns)
    rows = tuple(
        (name, *(heat_map.text(value) for value in row))
        for name, row in zip(heat_map.rows, heat_map.values, strict=True)
    )
    return Table("", columns, rows)


def _curve_table(lines: Lines) -> Table:
    rows = []
    for series in lines.series:
        values = finite(series.y)
        if values:
            rows.append((series.name, len(values), values[0], min(values), values[-1]))
    return Table(
        "", (lines.y_axis, f"points ({lines.x_axis})", "first", "lowest", "last"), tuple(rows)
    )


def _tree(tree: Tree, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}- {_inline(tree.text)}"]
    for branch in tree.below:
        lines += _tree(branch, depth + 1)
    return lines


def _row(cells: Sequence[str], *, literal: bool = False) -> str:
    shown = cells if literal else [_inline(cell) for cell in cells]
    return "| " + " | ".join(shown) + " |"


def _inline(text: str) -> str:
    """The text with what Markdown or HTML would act on taken for itself."""
    for mark in ("\\", "|", "*", "_", "`", "[", "]", "~"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
