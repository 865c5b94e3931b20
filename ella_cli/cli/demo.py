"""`ella demo`: forgetting, and what ELLA does about it, in a few minutes without any data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption

# Enough to learn the tasks and to see them forgotten, in minutes on two cores.
_SETTINGS: dict[str, Any] = {
    "order": "demo",
    "lr_scheduler_type": "linear",
    "limit_test": 40,
}
_STEPS = 40
# The first to run trains the first task for both; the second needs no curvature.
_METHODS: dict[str, dict[str, Any]] = {
    "ella": {"method": "ella", "energy": "curvature", "curvature_rows": 32},
    "inclora": {"method": "inclora", "curvature_rows": 0},
}


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
    from ella_cli.config import RunSettings, resolve_settings
    from ella_cli.report import comparison_table, matrix_table, read_run, write_html
    from ella_cli.sequence import run_order

    output = Output(as_json, quiet)
    folders = {method: output_dir / method for method in _METHODS}
    documents = {}
    with showing_progress(output) as progress:
        for method, own in _METHODS.items():
            settings = resolve_settings(
                RunSettings,
                {"model": model, "max_steps": max_steps, "seed": seed, **_SETTINGS, **own},
            )
            progress.note(f"{method}: four tasks, {max_steps} steps each")
            documents[method] = run_order(
                settings,
                folders[method],
                first_stage=None if method == "ella" else folders["ella"],
                command=f"ella demo ({method})",
                progress=progress,
            )
    report = output_dir / "report.html"
    shown = [folders["inclora"], folders["ella"]]
    write_html(shown, report)
    runs = [read_run(folder) for folder in shown]
    output.result(
        documents,
        *(matrix_table(run) for run in runs),
        comparison_table(runs),
    )
    output.say(str(report), label="report")
