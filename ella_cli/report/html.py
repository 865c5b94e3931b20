"""A document as one HTML file that opens from disk: style inline, pictures as SVG, no script.

Every text passes Jinja's autoescape; only the style sheet and the SVG made here are taken as they
are, and `svg` escapes the words it sets.
"""

from __future__ import annotations

from functools import cache
from itertools import chain, count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ella_cli import __version__
from ella_cli.files import write_text
from ella_cli.report.colours import css, heat, ink
from ella_cli.report.document import (
    Document,
    HeatMap,
    Lines,
    Part,
    cell_text,
    numeric_columns,
)
from ella_cli.report.svg import line_chart

_PAGE = Path(__file__).parent / "page"


def render(document: Document, *, footer: str = "") -> str:
    """The whole page; `footer` tells how it was made."""
    return (
        _environment()
        .get_template("document.html.j2")
        .render(
            document=document,
            style=Markup((_PAGE / "document.css").read_text(encoding="utf-8")),
            footer=footer or made_by(""),
            anchors=_anchors(document),
        )
    )


def write(document: Document, path: Path, *, footer: str = "") -> None:
    """
    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, render(document, footer=footer))


def made_by(command: str) -> str:
    """The footer: version, and the command line where there was one."""
    return f"made by ella {__version__}" + (f" with: {command}" if command else "")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined
    )
    environment.globals |= {
        "kind_of": _kind_of,
        "chart": _chart,
        "paint": _paint,
        "numeric_columns": numeric_columns,
        "text": cell_text,
        "wide": _is_wide,
    }
    return environment


def _anchors(document: Document) -> list[str]:
    """One a section; titles that differ in signs only get a number behind theirs."""
    made: list[str] = []
    for section in document.sections:
        plain = _anchor(section.title)
        numbered = (f"{plain}-{n}" for n in count(2))
        made.append(next(one for one in chain([plain], numbered) if one not in made))
    return made


def _anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def _kind_of(part: Part) -> str:
    return type(part).__name__


def _chart(lines: Lines) -> Markup:
    return Markup(line_chart(lines))


def _is_wide(heat_map: HeatMap) -> bool:
    """Whether it needs more than a third of a wide page; by the style sheet's sizes, in rem."""
    longest = max(len(name) for name in (*heat_map.rows, heat_map.row_axis + " ↓"))
    words = [max(map(len, name.replace("-", "- ").split()), default=0) for name in heat_map.columns]
    return 1.3 + 0.52 * longest + sum(max(3.6, 1.3 + 0.55 * word) for word in words) > 21


def _paint(heat_map: HeatMap, value: float) -> str:
    back = heat(heat_map.share(value), signed=heat_map.scale == "signed")
    return f"background:{css(back)};color:{css(ink(back))}"
