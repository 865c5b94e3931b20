"""`ella sweep`: λ over seeds on held-out train rows, by as many workers as there are."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.options import DryRunOption, takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.config import RunSettings
from ella_cli.unused import unused_settings


@takes_settings(RunSettings, without=("lam",))
def sweep(
    *,
    settings: RunSettings,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="The sweep's folder; made, or gone on with.")
    ],
    lambdas: Annotated[
        str | None,
        typer.Option(
            "--lambda",
            help="λ to try, joined by commas; auto is one. By default 0, 1, 100 and auto; with "
            "coordinates 0, 1e3, 1e4, 1e5 and auto; with olora 0, 0.05, 0.5 and 5.",
            metavar="LIST",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs a λ, from --seed on.", min=1)] = 3,
    processes: Annotated[
        int, typer.Option("--processes", help="Workers at the same time on this machine.", min=1)
    ] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Database URL that several machines share; else a SQLite file in the folder.",
            metavar="URL",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", help="Name in the database; else made from the settings."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Choose λ on rows held out of train, over several seeds.

    Every λ with every seed is one `ella run` in a folder of its own. Stopped or killed and started
    again, it goes on, also inside a run; more λ or seeds later only add runs. Machines that give
    the same --storage and settings share the work. Ends in a table and a plot of overall
    accuracy (OA) and backward transfer (BWT, below 0 is forgotten) against λ. Test rows are never
    looked at.

    [bold]Examples[/]

      ella sweep --order 1 --data data --validation 100 --lambda 0,1,10,auto -o sweeps/o1

      ella sweep --order 1 --data data --validation 100 --energy sum -o sweeps/o1-sum

      ella sweep --config run.yaml --validation 100 --processes 2 -o sweeps/mine

      ella sweep --order 1 --validation 100 --storage postgresql://me@host/ella -o sweeps/shared
    """
    from rich.text import Text

    from ella_cli.sweep.points import check_held_out, points_of

    output = Output(as_json, quiet, verbose)
    points = points_of(lambdas, seeds, settings)
    check_held_out(settings)
    tried = tuple(point.lam if point.number is None else point.number for point in points)
    for note in unused_settings(settings.model_copy(update={"lam": tried})):
        output.warn(note)
    if settings.lam is not None:
        output.warn(
            "the settings file's lambda is not used: a sweep tries a list of its own, here "
            f"--lambda {','.join(dict.fromkeys(point.lam for point in points))}"
        )
    if dry_run:
        from ella_cli.cli.train import print_settings

        names = ", ".join(f"λ {point.lam} seed {point.seed}" for point in points)
        print_settings(output, settings, output_dir=output_dir, runs=names)
        return
    from ella_cli.cli.bar import showing_progress
    from ella_cli.report.terminal import render_part
    from ella_cli.sweep import run_sweep

    with showing_progress(output) as progress:
        done = run_sweep(
            settings,
            points,
            output_dir,
            storage=storage,
            study_name=study,
            processes=processes,
            command=_command(storage),
            progress=progress,
        )
    (section,) = done.document.sections
    shown = [line for part in section.parts for line in (render_part(part), Text())]
    output.result(done.json, *shown[:-1])
    output.say(str(output_dir / "sweep.svg"), label="plot")
    output.say(str(output_dir / "sweep.html"), label="page")


def _command(storage: str | None) -> str:
    """The command as each run notes it; runs are shown around, a database's password is not."""
    words = ["ella", *sys.argv[1:]]
    if storage:
        from ella_cli.sweep.study import without_password

        shown = without_password(storage)
        words = [word.replace(storage, shown) for word in words]
    return shlex.join(words)
