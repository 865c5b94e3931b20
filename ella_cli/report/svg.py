"""Curves as inline SVG that takes the page's ink: no script, no font, no picture file.

Each panel is drawn for a width of about 360 points, so that its words stay readable on a phone;
a page sets several side by side where there is room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ella_cli.report.colours import CURVES, DASHES
from ella_cli.report.document import Lines, Series, bars

_WIDTH, _HEIGHT = 360.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 12.0, 10.0, 42.0
_LEGEND_LINE = 16.0
_TICKS = 5


@dataclass(frozen=True)
class _Axis:
    """A mapping from values to points along one side of the panel."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        return self.start + (self._scaled(value) - self._scaled(self.low)) / (
            self._scaled(self.high) - self._scaled(self.low)
        ) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            stride = max(1, math.ceil((last - first) / _TICKS))
            return [10.0**power for power in range(first, last + 1, stride)]
        step = _nice_step((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def line_chart(lines: Lines) -> str:
    """An `<svg>` element; its classes are coloured by the page's style sheet."""
    # A series keeps the colour of its place in the whole, so that charts of the same tasks agree.
    drawn = {i: s for i, s in enumerate(lines.series) if _points(s, lines.logarithmic)}
    if not drawn:
        return ""
    legend_rows = _legend_rows(drawn)
    height = _HEIGHT + _LEGEND_LINE * len(legend_rows)
    x_axis, y_axis = _axes(list(drawn.values()), lines.logarithmic)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(lines.title)}: {escape(lines.y_axis)} over {escape(lines.x_axis)}">'
    ]
    parts += _grid(x_axis, y_axis, lines)
    for index, series in drawn.items():
        parts += _curve(series, index, x_axis, y_axis, lines.logarithmic)
        for at, low, high in bars(series):
            x, bottom, top = x_axis.at(at), y_axis.at(low), y_axis.at(high)
            parts.append(
                f'<path class="curve" d="M{x:.1f} {bottom:.1f}V{top:.1f}" '
                f'stroke="var(--c{index % CURVES})"/>'
            )
    parts += _legend(legend_rows)
    return "".join([*parts, "</svg>"])


def _axes(series: Sequence[Series], logarithmic: bool) -> tuple[_Axis, _Axis]:
    points = [p for s in series for p in _points(s, logarithmic)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ys += [
        end for s in series for _, *ends in bars(s) for end in ends if end > 0 or not logarithmic
    ]
    low, high = min(ys), max(ys)
    if logarithmic:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        high = high if high > low else low * 10
    else:
        low = min(0.0, low)
        high = high if high > low else low + 1.0
    right = max(xs) if max(xs) > min(xs) else min(xs) + 1
    return (
        _Axis(min(xs), right, _LEFT, _WIDTH - _RIGHT),
        _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, logarithmic),
    )


def _points(series: Series, logarithmic: bool) -> list[tuple[float, float]]:
    return [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if y is not None and math.isfinite(y) and (y > 0 or not logarithmic)
    ]


def _grid(x_axis: _Axis, y_axis: _Axis, lines: Lines) -> list[str]:
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}"/>')
        parts.append(f'<text x="{_LEFT - 5:g}" y="{y + 3.5:.1f}" class="end">{_tick(tick)}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<path class="axis" d="M{_LEFT:g} {base:g}H{_WIDTH - _RIGHT:g}"/>')
    named = lines.x_ticks or [(tick, _tick(tick)) for tick in x_axis.ticks()]
    for tick, name in named:
        x = x_axis.at(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {base:g}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16:g}" class="middle">{escape(name)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle:g}" y="{base + 33:g}" class="middle name">{escape(lines.x_axis)}</text>'
    )
    height = (_TOP + base) / 2
    parts.append(
        f'<text transform="translate(11 {height:g}) rotate(-90)" class="middle name">'
        f"{escape(lines.y_axis)}</text>"
    )
    return parts


def _curve(
    series: Series, index: int, x_axis: _Axis, y_axis: _Axis, logarithmic: bool
) -> list[str]:
    points = [(x_axis.at(x), y_axis.at(y)) for x, y in _points(series, logarithmic)]
    if len(points) == 1:
        ((x, y),) = points
        return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--c{index % CURVES})"/>']
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return [
        f'<path class="curve" d="M{path}" {_stroke(index)}>'
        f"<title>{escape(series.name)}</title></path>"
    ]


def _legend_rows(series: Mapping[int, Series]) -> list[list[tuple[int, str, float]]]:
    """Names packed into rows: (series' index, name, where it starts)."""
    rows: list[list[tuple[int, str, float]]] = []
    x = _WIDTH
    for index, one in series.items():
        width = 36 + 6.9 * len(one.name)
        if x + width > _WIDTH:
            rows.append([])
            x = 10.0
        rows[-1].append((index, one.name, x))
        x += width
    return rows


def _legend(rows: Sequence[Sequence[tuple[int, str, float]]]) -> list[str]:
    parts = []
    for line, row in enumerate(rows):
        y = _HEIGHT + 6 + _LEGEND_LINE * line
        for index, name, x in row:
            parts.append(f'<path class="curve" d="M{x:g} {y:g}h20" {_stroke(index)}/>')
            parts.append(f'<text x="{x + 25:g}" y="{y + 4:g}">{escape(name)}</text>')
    return parts


def _stroke(index: int) -> str:
    dash = DASHES[index % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="var(--c{index % CURVES})"{dashed}'


def _tick(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        digits, power = f"{value:.2e}".split("e")
        mantissa = f"{float(digits):g}"
        return f"{'' if mantissa == '1' else mantissa + '·'}10{_superscript(int(power))}"
    return f"{value:.6g}"


def _superscript(power: int) -> str:
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return str(power).translate(digits)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= rough * 0.999)
