"""`ella measure`: what an adapter's task depends on, for one that was trained without it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ella_cli.cli.options import takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.config import MeasureSettings


@takes_settings(MeasureSettings)
def measure(
    *,
    settings: MeasureSettings,
    adapter: Annotated[Path, typer.Argument(help="A PEFT LoRA folder.")],
    task: Annotated[
        str, typer.Option("--task", help="The task it has learnt: a built-in name or a folder.")
    ],
    past: Annotated[
        Path | None,
        typer.Option("--past", help="The W_past it was trained on, or a later state of it."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Measure what an adapter's task depends on, so that later tasks can leave it alone.

    Writes curvature.safetensors beside the adapter, as `ella train` does at a task's end.
    Accumulate the adapter, again if it is in already, to bring that into a past. Rows are read as
    when an adapter of ella's was trained (header, lengths, limits, seed), unless you say otherwise.

    [bold]Examples[/]

      ella measure adapters/amazon --task amazon --data data --past wpast.safetensors

      ella measure runs/o1/stages/02-amazon --task amazon --data data
    """
    from ella_cli.cli.bar import showing_progress
    from ella_cli.sequence.measure import measure_adapter

    output = Output(as_json, quiet, verbose)
    with showing_progress(output) as progress:
        facts = measure_adapter(adapter, task, settings, past=past, progress=progress)
    dropped = facts["largest_dropped_share"]
    output.result(
        {"adapter": str(adapter), **facts},
        f"curvature of {adapter}: {facts['rows']} rows, {facts['tokens']} answer tokens, "
        f"{facts['seconds']:.0f} s\n"
        f"rank {facts['rank']}: at most {dropped['g']:.1%} of G and {dropped['c']:.1%} of C "
        "dropped in a module\n"
        f"importance {facts['importance']:.2g}\n"
        f"next: ella accumulate {shlex.quote(str(adapter))} --past wpast.safetensors",
    )
