"""`ella export`: a past as other programs load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption

if TYPE_CHECKING:
    from rich.table import Table

    from ella_cli.past import Past
    from ella_cli.past.export import Exported


def export(
    past: Annotated[Path, typer.Option("--past", help="The W_past file.")],
    form: Annotated[
        Literal["peft", "merged", "dense"],
        typer.Option(
            "--as", help="A PEFT adapter, a whole model with its past folded in, or matrices."
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="A new folder, with its model card.")
    ],
    max_rank: Annotated[
        int | None,
        typer.Option(help="peft: cut to this rank, for servers with a limit; states the error."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="merged: the base model, if not the one the past names; peft: for its config."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="dense: of the matrices; float32 by default."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Write the past as a PEFT adapter, a merged model or dense matrices.

    The PEFT adapter is the exact sum of all tasks, with scale 1 and the sum of their ranks; peft,
    transformers and servers load it as it is.

    [bold]Examples[/]

      ella export --past wpast.safetensors --as peft -o exported

      ella export --past wpast.safetensors --as peft --max-rank 16 -o for-the-server

      ella export --past wpast.safetensors --as merged --model models/llama -o merged
    """
    from ella_cli.errors import SettingsError
    from ella_cli.past import read_past
    from ella_cli.past.export import export_adapter, export_dense, export_merged

    if max_rank is not None and form != "peft":
        raise SettingsError(f"--max-rank is for --as peft, not {form}", hint="leave it out")
    if dtype is not None and form != "dense":
        raise SettingsError(f"--dtype is for --as dense, not {form}", hint="leave it out")
    if model is not None and form == "dense":
        raise SettingsError("--model is for --as peft and merged, not dense", hint="leave it out")
    output = Output(as_json, quiet, verbose)
    held = read_past(past)
    if form == "peft":
        done = export_adapter(held, output_dir, max_rank=max_rank, base=model)
    elif form == "dense":
        done = export_dense(held, output_dir, dtype=dtype or "float32")
    else:
        done = export_merged(held, _local_model(held, model), output_dir)
    output.result(_document(done), _table(done))


def _local_model(held: Past, model: str | None) -> Path:
    from ella_cli.errors import ModelError
    from ella_cli.model.source import hub_id, local_folder

    named = held.base.model
    if model is None and not named:
        raise ModelError(
            "the past does not name its base model", hint="say which it is with --model"
        )
    if model is not None:
        return local_folder(model)
    try:
        # A path of another machine may be the name of anybody's model on the hub.
        return local_folder(named, fetch=False)
    except ModelError as error:
        if hub_id(named) != named:
            raise
        raise ModelError(
            f"the past was made on {named}, which is not here",
            hint=f"give --model a folder, or --model {named} to get that from the hub",
        ) from error


def _document(done: Exported) -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "form": done.form,
        "bytes": done.bytes,
        "exactness": done.exactness,
        "modules": [
            {"name": module.name, "rank": module.rank, "relative_error": module.relative}
            for module in done.modules
        ],
    }


def _table(done: Exported) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row(done.form, str(done.folder))
    table.add_row("size", f"{done.bytes / 1e6:.3g} MB")
    table.add_row("exactness", done.exactness)
    return table
