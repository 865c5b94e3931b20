"""The heat maps and curves of a document as one picture file, PNG or SVG, drawn by matplotlib.

Tables and words have no place in a picture; the JSON and the page have them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ella_cli.errors import SettingsError
from ella_cli.files import replacing
from ella_cli.report.colours import DASHES, css, heat, ink
from ella_cli.report.document import Document, HeatMap, Lines, Series, bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito 2008; the page has its own, lighter on dark ground.
_CURVES = ("#0072b2", "#d98e00", "#009e73", "#d55e00", "#b5609a", "#3f9fd6")
_COLUMNS = 2
_DOTS_PER_INCH = 150
_NAMES_IN_A_ROW = 60  # characters of all columns together
# A task's name may hold a dollar, which is no formula.
_STYLE: Any = {"svg.hashsalt": "ella", "text.parse_math": False}


def write(document: Document, path: Path) -> None:
    """
    Raises:
        SettingsError: another ending than .png or .svg, or nothing that can be drawn.
        StorageError: the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise SettingsError(f"{path} is no .png or .svg", hint="name the picture so")
    drawn = [p for s in document.sections for p in s.parts if isinstance(p, HeatMap | Lines)]
    drawn = [p for p in drawn if not isinstance(p, Lines) or _has_points(p)]
    if not drawn:
        raise SettingsError(
            f"{document.title}: there is nothing to draw", hint="leave --plot out; tables have it"
        )
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    heights = [
        max(_height(p) for p in drawn[row * columns : (row + 1) * columns]) for row in range(rows)
    ]
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.4 * columns, sum(heights)), layout="constrained")
        # Without pyplot: no global state, and no window system is looked for.
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(rows, columns, height_ratios=heights)
        for index, part in enumerate(drawn):
            axes = figure.add_subplot(grid[index // columns, index % columns])
            if isinstance(part, HeatMap):
                _heat_map(axes, part)
            else:
                _lines(axes, part)
        # Equal runs give equal bytes: no date, and ids that are not drawn by chance.
        dateless = {"Date": None} if kind == "svg" else None
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, metadata=dateless)


def _height(part: HeatMap | Lines) -> float:
    return 4.0 if isinstance(part, Lines) else max(2.4, 1.4 + 0.3 * len(part.rows))


def _heat_map(axes: Axes, part: HeatMap) -> None:
    signed = part.scale == "signed"
    for i, row in enumerate(part.values):
        for j, value in enumerate(row):
            if value is None:
                continue
            back = heat(part.share(value), signed=signed)
            axes.fill_between((j - 0.5, j + 0.5), i - 0.5, i + 0.5, color=css(back), linewidth=0)
            axes.text(
                j, i, part.text(value), ha="center", va="center", color=css(ink(back)), fontsize=7
            )
    axes.set_xlim(-0.5, len(part.columns) - 0.5)
    axes.set_ylim(len(part.rows) - 0.5, -0.5)
    # More names than fit side by side stand on end.
    turned = 90 if sum(map(len, part.columns)) > _NAMES_IN_A_ROW else 0
    axes.set_xticks(range(len(part.columns)), part.columns, fontsize=8, rotation=turned)
    axes.set_yticks(range(len(part.rows)), part.rows, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(part.column_axis)
    axes.set_ylabel(part.row_axis)
    axes.set_title(part.title, fontsize=10, loc="left")


def _lines(axes: Axes, part: Lines) -> None:
    for index, series in enumerate(part.series):
        points = _points(series, part.logarithmic)
        if not points:
            continue
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=series.name,
            color=_CURVES[index % len(_CURVES)],
            linestyle=_dash(index),
            marker="o" if len(points) == 1 or part.x_ticks else None,
        )
        for x, low, high in bars(series):
            axes.plot([x, x], [low, high], color=_CURVES[index % len(_CURVES)], linewidth=1)
    if part.x_ticks:
        axes.set_xticks([x for x, _ in part.x_ticks], [name for _, name in part.x_ticks])
    if part.logarithmic:
        axes.set_yscale("log")
    axes.set_xlabel(part.x_axis)
    axes.set_ylabel(part.y_axis)
    axes.set_title(part.title, fontsize=10, loc="left")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)


def _dash(index: int) -> Any:
    """Matplotlib's form of the pattern that the page draws: (offset, lengths), or a full line."""
    pattern = DASHES[index % len(DASHES)]
    return (0, [float(length) / 2 for length in pattern.split()]) if pattern else "-"


def _has_points(lines: Lines) -> bool:
    return any(_points(series, lines.logarithmic) for series in lines.series)


def _points(series: Series, logarithmic: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if y is not None and (y > 0 or not logarithmic)
    ]
