"""`ella plan`: memory and time of a run, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ella_cli.cli.options import takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.config import RunSettings

if TYPE_CHECKING:
    from ella_cli.plan import Plan, Rates
    from ella_cli.plan.held import HeldCurvature
    from ella_cli.report.document import Table


@takes_settings(RunSettings)
def plan(
    *,
    settings: RunSettings,
    tasks: Annotated[
        int | None, typer.Option("--tasks", help="As if the order had so many tasks.", min=1)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", help="Of a sequence, prompt and answer; else the most allowed.", min=2
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option("--answer-tokens", help="Of them the answer; else the most allowed.", min=1),
    ] = None,
    store: Annotated[
        Literal["factored", "dense"] | None,
        typer.Option("--store", help="Of the past; else the smaller one, as a run chooses."),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(
            "--flops", help="Per second, of the machine; else measured on this one.", min=1.0
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth", help="Bytes per second of its memory; else measured here.", min=1.0
        ),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Estimate memory and time of a run from the model's config alone.

    No weights are loaded or downloaded: modules and LoRA pairs are counted on the real model
    without data, and one training step is played through on it. Memory is that of training the
    last task; a step's time is a rough estimate from flops and bytes moved.

    [bold]Examples[/]

      ella plan --order 4

      ella plan --config llama-3.1-8b-order4 --device cuda --flops 4e14 --bandwidth 3e12

      ella plan --config t5-large-order4 --tokens 200

      ella plan --model ./llama-70b --tasks 100 --store dense
    """
    from rich.text import Text

    from ella_cli.plan import make_plan, process_bytes
    from ella_cli.report.terminal import render_part

    output = Output(as_json, quiet, verbose)
    # Before anything is measured, which takes memory too.
    process = process_bytes()
    made = make_plan(
        settings,
        _rates(settings, flops, bandwidth),
        process_bytes=process,
        tasks=tasks,
        tokens=tokens,
        answers=answer_tokens,
        store=store,
    )
    tables = [render_part(table) for table in (_memory(made), _pasts(made), _step(made))]
    spaced = [part for table in tables for part in (Text(), table)]
    output.result(made.to_json(), Text(_words(made)), *spaced)
    for note in made.notes:
        output.warn(note)


def _rates(settings: RunSettings, flops: float | None, bandwidth: float | None) -> Rates:
    from ella_cli.errors import SettingsError
    from ella_cli.plan import Rates, measure_rates
    from ella_cli.plan.plan import placement

    if flops is not None and bandwidth is not None:
        return Rates(flops, bandwidth, "given, the last assumed")
    device, dtype = placement(settings)
    try:
        here = measure_rates(device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"{device} is not here to be measured: {str(error).splitlines()[0]}",
            hint="give its --flops and --bandwidth, such as 4e14 and 3e12",
        ) from error
    if flops is None and bandwidth is None:
        return here
    partly = "given in part, else measured"
    return Rates(flops or here.flops, bandwidth or here.bandwidth, partly, here.call)


def _words(made: Plan) -> str:
    where = "host memory" if made.device == "cpu" else f"memory of {made.device}"
    process = f"{_size(made.process_bytes)} of interpreter and libraries (measured here)"
    beside = (
        f", and {process} beside it: {_size(made.bytes + made.process_bytes)}"
        if made.device == "cpu"
        else f", {process} of host memory, and what the driver takes"
    )
    measuring = (
        f", measuring a task's curvature at its end {_seconds(made.measuring_seconds)}"
        if made.measuring_seconds
        else ""
    )
    return (
        f"{made.model} ({made.kind}, {made.dtype}) needs about {_size(made.bytes)} of {where} "
        f"to train the last of {made.tasks} tasks{beside}. A step takes about "
        f"{_seconds(made.step_seconds)}{measuring}. Evaluation is not counted."
    )


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 10 else f"{value:,.0f} s"


def _memory(made: Plan) -> Table:
    from ella_cli.report.document import Table

    rows = [(part.name, _size(part.bytes), part.what) for part in made.parts]
    batch = made.batch
    return Table(
        title="memory",
        columns=("part", "size", "what"),
        rows=(*rows, ("together", _size(made.bytes), "")),
        note=f"micro-batch of {batch.sequences} sequences of {batch.tokens} tokens, of which "
        f"{batch.answers} the answer; GB is 10⁹ bytes",
    )


def _pasts(made: Plan) -> Table:
    from ella_cli.report.document import Table

    rows = tuple(
        (held.store, held.tasks, _size(held.file), _size(held.memory), held.form, held.seconds)
        for held in made.pasts
    )
    beside = made.curvature
    return Table(
        title="the past before the last task, in either store",
        columns=("store", "tasks", "file", "in memory", "penalty's form", "a step (s)"),
        rows=rows,
        note=f"this run would keep it {made.store}"
        + (f", and {_about(beside)} of curvature beside it" if beside else ""),
    )


def _step(made: Plan) -> Table:
    from ella_cli.report.document import Table

    rates = made.rates
    return Table(
        title="one optimizer step",
        columns=("flops", "bytes moved", "operations", "penalty (s)", "all (s)"),
        rows=(
            (
                made.flops * 1.0,
                made.traffic * 1.0,
                made.operations,
                made.penalty_seconds,
                made.step_seconds,
            ),
        ),
        note=f"{made.accumulation} micro-batches; at {rates.flops:.3g} flops and "
        f"{rates.bandwidth:.3g} bytes a second and {1e6 * rates.call:.0f} µs of the host an "
        f"operation: {rates.origin}",
    )


def _about(beside: HeldCurvature) -> str:
    return f"{'about ' * beside.cut}{_size(beside.file)}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
