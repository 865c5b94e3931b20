"""`ella demo`: forgetting, and what ELLA does about it, in a few minutes without any data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption

# 12 minutes of one core's time on a slow machine; forgetting is not yet visible in so few steps.
_STEPS = 20
_TEST_ROWS = 32
_CURVATURE_ROWS = 32


def demo(
    *,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Gets a run's folder for each method.")
    ] = Path("demo-run"),
    model: Annotated[
        str, typer.Option("--model", help="Base model, as for `ella run`.")
    ] = "smollm2",
    max_steps: Annotated[int, typer.Option("--max-steps", help="Steps a task.")] = _STEPS,
    seed: Annotated[int, typer.Option("--seed", help="Seed of both runs.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn four small built-in tasks twice, without and with ELLA, side by side.

    The tasks are sentences from a seeded grammar; nothing is downloaded. Stopped and started
    again, it goes on.

    [bold]Examples[/]

      ella demo

      ella demo --output-dir /tmp/demo --max-steps 10
    """
    from ella_cli.cli.bar import showing_progress
    from ella_cli.config import RunSettings
    from ella_cli.report import comparison_table, matrix_table, read_run, write_html
    from ella_cli.sequence import run_order

    output = Output(as_json, quiet)
    folders, documents = [], {}
    with showing_progress(output) as progress:
        for method in ("inclora", "ella"):
            settings = RunSettings(
                order="demo",
                model=model,
                method=method,
                energy="curvature" if method == "ella" else None,
                curvature_rows=_CURVATURE_ROWS if method == "ella" else 0,
                max_steps=max_steps,
                limit_test=_TEST_ROWS,
                decode="rank",
                lr_scheduler_type="linear",
                seed=seed,
            )
            folder = output_dir / method
            progress.note(f"{method}: four tasks, {max_steps} steps each")
            documents[method] = run_order(
                settings, folder, command=f"ella demo ({method})", progress=progress
            )
            folders.append(folder)
    report = output_dir / "report.html"
    write_html(folders, report)
    runs = [read_run(folder) for folder in folders]
    output.result(
        documents,
        *(matrix_table(run) for run in runs),
        comparison_table(runs),
    )
    output.say(f"[dim]report[/] {report}")
