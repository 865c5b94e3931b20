"""`ella run`: a whole order, train → accumulate → evaluate, resumable."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.options import DryRunOption, takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError
from ella_cli.unused import unused_settings

SingleOption = Annotated[
    Path | None,
    typer.Option("--single", help="A finished run of method single, for plasticity FWT."),
]


@takes_settings(RunSettings)
def run(
    *,
    settings: RunSettings,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="The run's folder; made, or gone on with.")
    ],
    single: SingleOption = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(
            "--first-stage", help="A run whose first stage is the same: not trained anew."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html at the end.")
    ] = True,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Learn a whole order of tasks: train, accumulate, evaluate.

    Started again with the same command, it goes on from the last finished step; with an order that
    has more tasks at its end, it learns those too. Ends in the score of every stage on every task,
    and in what is said of them: overall accuracy (OA, the mean over tasks at the end), backward
    transfer (BWT, what was kept: below 0 is forgotten) and forward transfer (FWT, what earlier
    tasks brought later ones).

    Methods: ella (λ > 0), inclora (λ = 0: a new adapter per task, summed), seqlora (one adapter
    carried through), olora (O-LoRA), replay (inclora with 1% of each past task's rows), single
    (each task alone), joint (all at once). Without --lambda each uses its own: ella auto, olora
    0.5.

    [bold]Examples[/]

      ella run --order 1 --data data -o runs/o1

      ella run --order 1 --data data --method inclora --first-stage runs/o1 -o runs/o1-inclora

      ella run --order amazon,./my-task --config run.yaml -o runs/mine

      ella run --order amazon,./my-task,./next-year --config run.yaml -o runs/mine
    """
    from ella_cli.cli.train import print_settings

    output = Output(as_json, quiet, verbose)
    for note in unused_settings(settings):
        output.warn(note)
    if dry_run:
        from ella_cli.sequence.first_stage import check_has_first
        from ella_cli.sequence.run import check_run
        from ella_cli.tasks import resolve_order

        order = resolve_order(settings.order)
        check_run(settings, order)
        if first_stage is not None:
            check_has_first(settings)
        _check_there(settings, single, first_stage)
        print_settings(
            output,
            settings,
            output_dir=output_dir,
            tasks=", ".join(order),
            single=single,
            first_stage=first_stage,
        )
        return
    from ella_cli.cli.bar import showing_progress
    from ella_cli.report import matrix_table, write_html
    from ella_cli.report.results import read_run
    from ella_cli.sequence import RunFolder, run_order

    command = shlex.join(["ella", *sys.argv[1:]])
    with showing_progress(output) as progress:
        document = run_order(
            settings,
            output_dir,
            single=single,
            first_stage=first_stage,
            command=command,
            progress=progress,
        )
    folder = RunFolder(output_dir)
    if report and output.speaks:
        write_html([output_dir], folder.report)
    output.result(document, matrix_table(read_run(output_dir)))
    output.say(str(folder.results), label="results")
    if report:
        output.say(str(folder.report), label="report ")


def _check_there(settings: RunSettings, single: Path | None, first_stage: Path | None) -> None:
    """
    Raises:
        SettingsError: a folder that is named is not there.
    """
    for flag, folder in (
        ("--data", settings.data),
        ("--single", single),
        ("--first-stage", first_stage),
    ):
        if folder and not folder.is_dir():
            raise SettingsError(f"{flag} {folder} is not a folder", hint="name one that is there")
