"""`ella report`: runs as one HTML page, Markdown or JSON."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption, printable


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `ella run` wrote, or their results.json.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The page to write; or .md, .json, and .svg or .png for a picture."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--md", help="Markdown on stdout.")] = False,
    past: Annotated[
        bool, typer.Option(help="Also look into W_past: energy, spectrum, overlap of tasks.")
    ] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """
    Show one run, or several side by side.

    Accuracy matrix, OA, BWT, forgetting, learned and both FWTs with bootstrap intervals, learning
    curves, penalty against loss, what the past holds, and where it all came from. Runs that differ
    in their seed only are averaged. Without --out the tables are printed.

    [bold]Examples[/]

      ella report runs/o1

      ella report runs/o1 --out report.html

      ella report runs/ella-s0 runs/ella-s1 runs/inclora --out side-by-side.html

      ella report runs/o1 --out matrix.svg

      ella report runs/o1 --md > results.md
    """
    from ella_cli.report import make_report, terminal
    from ella_cli.report import markdown as markdown_page

    output = Output(as_json=as_json, quiet=quiet)
    made = make_report(runs, past=past)
    if out is not None:
        made.write(out, command=shlex.join(["ella", *sys.argv[1:]]))
        output.say(f"wrote {out}")
    for warning in made.warnings:
        output.warn(warning)
    if markdown and not as_json:
        sys.stdout.write(printable(markdown_page.render(made.document)))
    elif as_json or out is None:
        output.result(made.json, terminal.render(made.document))
