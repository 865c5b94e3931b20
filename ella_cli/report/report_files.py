"""The report of some run folders, and the files it can become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ella_cli.errors import SettingsError
from ella_cli.files import finite_json, write_json, write_text
from ella_cli.names import nameable
from ella_cli.report import figure, html, markdown, terminal
from ella_cli.report.document import Document
from ella_cli.report.past_picture import PastPicture, picture_past
from ella_cli.report.results import RunResults, read_run
from ella_cli.report.run_document import run_document
from ella_cli.report.run_json import report_json
from ella_cli.report.signs import signs
from ella_cli.report.tables import accuracy_heat_map, comparison, metrics_table


@dataclass(frozen=True)
class Report:
    """The same facts twice: to be drawn, and as JSON. `warnings` are the runs' own signs."""

    document: Document
    json: Mapping[str, Any]
    warnings: tuple[str, ...]

    def write(self, out: Path, *, command: str = "") -> None:
        """Writes HTML, or what the name's ending asks for.

        .md gives Markdown, .json JSON, .svg and .png the matrices and curves as a picture.

        Raises:
            SettingsError: another ending.
            StorageError: `out` cannot be written.
        """
        ending = out.suffix.lower()
        if ending in (".html", ".htm"):
            html.write(self.document, out, footer=html.made_by(command))
        elif ending == ".md":
            write_text(out, markdown.render(self.document))
        elif ending == ".json":
            write_json(out, finite_json(self.json))
        elif ending in (".svg", ".png"):
            figure.write(self.document, out)
        else:
            raise SettingsError(
                f"{out} ends in {ending or 'nothing'}, which is no kind of report",
                hint="name it .html, .md, .json, .svg or .png",
            )


def make_report(folders: Sequence[Path], *, past: bool = True) -> Report:
    """Reads the runs; with `past`, also looks into each run's W_past (loads torch).

    Raises:
        StorageError: a folder holds no finished run, or one that cannot be read.
        SettingsError: no folder, or one folder twice.
    """
    if not folders:
        raise SettingsError("no run to report", hint="name one or more folders of `ella run`")
    read = [read_run(folder) for folder in folders]
    resolved = [run.file.resolve() for run in read]
    for run in read:
        if resolved.count(run.file.resolve()) > 1:
            raise SettingsError(f"{run.name} is named twice", hint="name each run once")
    runs = _distinct_names(read)
    pictures = _pictures(runs) if past else {}
    return Report(
        document=run_document(runs, {path: p.sections for path, p in pictures.items()}),
        json=report_json(runs, {path: p.json for path, p in pictures.items()}),
        warnings=tuple(
            f"{run.name}: {sign.text}" if len(runs) > 1 else sign.text
            for run in runs
            for sign in signs(run)
        ),
    )


def write_html(folders: Sequence[Path], out: Path) -> Report:
    """Writes the page and gives what it shows.

    Raises:
        StorageError: a run cannot be read, or `out` cannot be written.
    """
    report = make_report(folders)
    html.write(report.document, out)
    return report


def matrix_table(run: RunResults) -> RenderableType:
    """The accuracy matrix and the figures of merit, for a terminal."""
    parts = (accuracy_heat_map(run), metrics_table(run, definitions=False))
    matrix, figures = (terminal.render_part(part) for part in parts)
    return Group(matrix, Text(), figures)


def comparison_table(runs: Sequence[RunResults]) -> RenderableType:
    """Several runs side by side, seeds of one setting averaged, for a terminal."""
    return Group(*(terminal.render_part(part) for part in comparison(runs)))


def _distinct_names(runs: Sequence[RunResults]) -> list[RunResults]:
    """The runs, those that share a name told apart by its .json or as many parents' as it takes."""
    given = [run.name for run in runs]
    runs = [
        replace(run, name=nameable(run.path.resolve().name)) if given.count(run.name) > 1 else run
        for run in runs
    ]
    named = list(runs)
    for above in range(1, max((len(run.path.resolve().parts) for run in runs), default=0)):
        names = [run.name for run in named]
        if len(set(names)) == len(names):
            break
        named = [
            replace(run, name="/".join((*_parts(run)[-above - 1 : -1], first.name)))
            if names.count(run.name) > 1
            else run
            for first, run in zip(runs, named, strict=True)
        ]
    return named


def _parts(run: RunResults) -> list[str]:
    return [nameable(part) for part in run.path.resolve().parts]


def _pictures(runs: Sequence[RunResults]) -> dict[Path, PastPicture]:
    found = {run.path: picture_past(run) for run in runs}
    return {path: picture for path, picture in found.items() if picture is not None}
