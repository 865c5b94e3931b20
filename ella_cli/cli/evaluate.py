"""`ella evaluate`, also `ella eval`: every stage on every task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.options import takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.cli.run import SingleOption
from ella_cli.config import EvaluateSettings
from ella_cli.errors import SettingsError


@takes_settings(EvaluateSettings)
def evaluate(
    *,
    settings: EvaluateSettings,
    order: Annotated[
        str | None,
        typer.Option("--order", help="1 to 6, trace, demo, or task names joined by commas."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Score the stages of this run's folder.")
    ] = None,
    adapters: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapters", help="Score the sums of these adapters, in order; again for each."
        ),
    ] = None,
    past: Annotated[
        Path | None, typer.Option("--past", help="Score the sum in this past file.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", "-o", help="Where scores of --adapters or --past go."),
    ] = None,
    single: SingleOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Score every stage on every task of an order; goes on where it stopped.

    With --run, model, data and decoding are the run's own unless a flag says otherwise; scores go
    into its folder, and its results.json then tells of these. With --adapters, stage j is the base
    plus the first j of them; with --past there is one, the sum.

    [bold]Examples[/]

      ella eval --run runs/o1

      ella eval --order 4 --run runs/o4 --decode rank

      ella eval --order dbpedia,amazon --adapters a1 --adapters a2 --data data -o scores

      ella eval --order 1 --past wpast.safetensors --data data -o scores
    """
    from ella_cli.cli.bar import showing_progress
    from ella_cli.report import matrix_table, write_html
    from ella_cli.report.results import read_run
    from ella_cli.run_paths import RunPaths
    from ella_cli.sequence import evaluate_adapters, evaluate_past, evaluate_run

    output = Output(as_json, quiet, verbose)
    if [run is not None, bool(adapters), past is not None].count(True) != 1:
        raise SettingsError(
            "ella evaluate needs one thing to score",
            hint="--run FOLDER, --past FILE with --order, or --adapters FOLDER (again for each) "
            "with --order",
        )
    if run is not None and output_dir is not None:
        raise SettingsError(
            "a run's scores and results go into its own folder",
            hint="leave --output-dir out, or score its stages with --adapters and --order",
        )
    with showing_progress(output) as progress:
        if run is not None:
            document = evaluate_run(run, settings, order=order, single=single, progress=progress)
            folder = run
        else:
            if order is None or output_dir is None:
                raise SettingsError(
                    f"{'--adapters' if adapters else '--past'} needs --order and --output-dir",
                    hint="--order names the tasks, in the order they were learned",
                )
            folder = output_dir
            if past is not None:
                if single is not None:
                    raise SettingsError(
                        "--single is compared with each task as it was just learned",
                        hint="a past knows only what came of all of them; leave --single out",
                    )
                document = evaluate_past(past, order, settings, folder, progress=progress)
            else:
                document = evaluate_adapters(
                    adapters or [], order, settings, folder, single=single, progress=progress
                )
    output.result(document, matrix_table(read_run(folder)))
    page = RunPaths(folder).report
    if run is not None and page.is_file() and output.speaks:
        # It shows these results too.
        write_html([folder], page)
