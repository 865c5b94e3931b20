"""`ella inspect …`: what pasts, adapters and runs hold."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ella_cli.cli.output import JsonOption, Output

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from ella_cli.report.document import Document

inspect = typer.Typer(
    help="Look into pasts, adapters and runs.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

PastFile = Annotated[Path, typer.Argument(help="A W_past file of `ella accumulate` or `ella run`.")]
AdapterFolder = Annotated[Path, typer.Argument(help="A PEFT LoRA folder.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Draw heat maps and curves: FILE.png or FILE.svg.")
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write a page that stands alone.")]


@inspect.command()
def energy(
    past: PastFile, as_json: JsonOption = False, plot: PlotOption = None, html: HtmlOption = None
) -> None:
    """
    How much the tasks moved each weight, where, and on how few coordinates.

    Norm, maximum, percentiles, share of the top coordinates and Gini of
    E = |W_past|, by module and in total, and how much cancelled.

    [bold]Example[/]  ella inspect energy runs/o1/wpast.safetensors --plot energy.png
    """
    from ella_cli.inspect.energy import energy_of
    from ella_cli.past import read_past
    from ella_cli.report.inspected_past import energy_document

    report = energy_of(read_past(past))
    _show(report, energy_document(report, past.name), as_json, plot, html)


@inspect.command()
def spectrum(
    past: PastFile, as_json: JsonOption = False, plot: PlotOption = None, html: HtmlOption = None
) -> None:
    """
    How many directions the past uses, which tasks hold and share them.

    Singular values, effective and stable rank by module; each task's part of
    the leading directions; principal angles between tasks.

    [bold]Example[/]  ella inspect spectrum runs/o1/wpast.safetensors --html spectrum.html
    """
    from ella_cli.inspect.spectrum import spectrum_of
    from ella_cli.past import read_past
    from ella_cli.report.inspected_past import spectrum_document

    report = spectrum_of(read_past(past))
    _show(report, spectrum_document(report, past.name), as_json, plot, html)


@inspect.command()
def overlap(
    adapter: AdapterFolder,
    past: Annotated[
        Path | None,
        typer.Option("--past", help="A W_past file; else the earlier stages of the adapter's run."),
    ] = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
    html: HtmlOption = None,
) -> None:
    """
    With which past task an adapter collides, where, and how hard.

    Inner product and cosine, the penalty against what a random update of the
    same size would pay, and the share on high-energy coordinates.

    [bold]Examples[/]

      ella inspect overlap runs/o1/stages/03-yahoo

      ella inspect overlap my-adapter --past runs/o1/wpast.safetensors
    """
    from ella_cli.adapter import read_adapter
    from ella_cli.inspect.overlap import overlap_of
    from ella_cli.inspect.run_stages import past_before
    from ella_cli.past import read_past
    from ella_cli.report.inspected_update import overlap_document

    against = past_before(adapter) if past is None else read_past(past)
    report = overlap_of(read_adapter(adapter), against)
    name = "the stages before it" if past is None else past.name
    _show(report, overlap_document(report, adapter.name, name), as_json, plot, html)


@inspect.command()
def bound(
    past: PastFile,
    adapter: AdapterFolder,
    lam: Annotated[
        list[float] | None,
        typer.Option("--lambda", help="λ, may be repeated; else the one it was trained with."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The same task trained with λ = 0: a measured G."),
    ] = None,
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """
    The interference bound in its corrected form, beside what it bounds.

    |⟨X, W⟩| ≤ ‖G‖ / (2 √λ) · ‖E⁻¹ ⊙ W‖, implied or with a measured G.

    [bold]Example[/]  ella inspect bound past.safetensors runs/ella/stages/02-amazon
    --reference runs/inclora/stages/02-amazon
    """
    from ella_cli.adapter import read_adapter
    from ella_cli.inspect.bound import bounds_of, trained_lambda
    from ella_cli.past import read_past
    from ella_cli.report.inspected_update import bound_document

    update = read_adapter(adapter)
    lams = lam or trained_lambda(update)
    ideal = read_adapter(reference) if reference is not None else None
    report = bounds_of(update, read_past(past), lams, ideal)
    _show(report, bound_document(report, adapter.name, past.name), as_json, None, html)


@inspect.command()
def forgetting(
    runs: Annotated[list[Path], typer.Argument(help="Scored folders of `ella run`.")],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="A run of the same order with λ = 0: measured G."),
    ] = None,
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """
    What foretold forgetting: bound, overlap or size of the update.

    Ranks each against the accuracy then lost, over all runs given. No
    correlation is claimed below 8 pairs.

    [bold]Example[/]  ella inspect forgetting runs/ella-s0 runs/ella-s1 --reference runs/inclora
    """
    from ella_cli.inspect.forgetting import forgetting_of
    from ella_cli.report.inspected_update import forgetting_document

    report = forgetting_of(runs, reference)
    _show(report, forgetting_document(report), as_json, None, html)


@inspect.command()
def adapter(folder: AdapterFolder, as_json: JsonOption = False, html: HtmlOption = None) -> None:
    """
    What an adapter is: for which task, on which base, on top of what.

    [bold]Example[/]  ella inspect adapter runs/o1/stages/02-amazon
    """
    from ella_cli.inspect.origin import adapter_origin
    from ella_cli.report.inspected_update import origin_document

    report = adapter_origin(folder)
    _show(report, origin_document(report), as_json, None, html)


@inspect.command()
def run(
    folder: Annotated[Path, typer.Argument(help="A folder of `ella run`, finished or not.")],
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """
    What a run has done, what it learned and kept, and what is missing.

    [bold]Example[/]  ella inspect run runs/o1
    """
    from ella_cli.inspect.origin import run_origin
    from ella_cli.report.inspected_update import origin_document

    report = run_origin(folder)
    _show(report, origin_document(report), as_json, None, html)


@inspect.command()
def past(past: PastFile, as_json: JsonOption = False, html: HtmlOption = None) -> None:
    """
    What a past is: which tasks, on which base, kept how.

    [bold]Example[/]  ella inspect past runs/o1/wpast.safetensors
    """
    from ella_cli.inspect.origin import past_origin
    from ella_cli.report.inspected_update import origin_document

    report = past_origin(past)
    _show(report, origin_document(report), as_json, None, html)


@inspect.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A W_past file, or an adapter's folder.")],
    b: Annotated[Path, typer.Argument(help="Another of the same kind.")],
    as_json: JsonOption = False,
    html: HtmlOption = None,
) -> None:
    """
    How far two pasts, or two adapters, are apart.

    [bold]Example[/]  ella inspect diff runs/ella/wpast.safetensors runs/inclora/wpast.safetensors
    """
    from ella_cli.inspect.difference import difference
    from ella_cli.report.inspected_update import difference_document

    report = difference(a, b)
    _show(report, difference_document(report), as_json, None, html)


def _show(
    report: DataclassInstance,
    document: Document,
    as_json: bool,
    plot: Path | None,
    html: Path | None,
) -> None:
    """Prints the report, after the files that were asked for."""
    from ella_cli.report import figure, terminal
    from ella_cli.report import html as page

    output = Output(as_json=as_json)
    if plot is not None:
        figure.write(document, plot)
        output.say(f"wrote {plot}")
    if html is not None:
        page.write(document, html, footer=page.made_by(shlex.join(["ella", *sys.argv[1:]])))
        output.say(f"wrote {html}")
    output.result(asdict(report), terminal.render(document))
