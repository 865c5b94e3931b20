"""`ella accumulate`: adapters into a W_past file, or out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption

if TYPE_CHECKING:
    from rich.table import Table

    from ella_cli.past import Accumulated, Compacted, Past


def accumulate(
    past: Annotated[Path, typer.Option("--past", help="The W_past file, made or changed.")],
    adapters: Annotated[
        list[Path] | None, typer.Argument(help="PEFT LoRA folders, added in this order.")
    ] = None,
    store: Annotated[
        Literal["auto", "factored", "dense"],
        typer.Option(help="auto: factors while they are smaller than matrices, then matrices."),
    ] = "auto",
    energy: Annotated[
        Literal["sum", "abs", "rss", "curvature"] | None,
        typer.Option(
            help="What later tasks leave alone: |Σ ΔW|, Σ |ΔW|, √Σ ΔW², or curvature; without it "
            "the file's own, at first curvature if every adapter has measured it, else sum."
        ),
    ] = None,
    last: Annotated[
        int | None, typer.Option(help="Only the last K tasks count for the energy; 0 for all.")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Each later task multiplies a task's energy by this; 1 for none."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Take this task out; again for each.")
    ] = None,
    replace: Annotated[
        tuple[str, Path] | None,
        typer.Option(help="Put another adapter in a task's place.", metavar="TASK FOLDER"),
    ] = None,
    taken_from: Annotated[
        Path | None,
        typer.Option("--from", help="Where the adapter to take out is, if a dense past needs it."),
    ] = None,
    shrink: Annotated[
        float | None,
        typer.Option(help="Add ΔW / (1 + λ E²) with this λ: ELLA for adapters trained without."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Afterwards, rewrite the factors at lower rank.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Of --compact: relative error that no module exceeds.", show_default="1e-4"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what is in already, or of another base model.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Add adapters to the past, in the order given, or take them out again.

    Needs neither the base model nor a network, and takes any plain LoRA adapter of PEFT. The file
    changes whole or not at all, and only one command at a time.

    [bold]Examples[/]

      ella accumulate adapters/dbpedia adapters/amazon --past wpast.safetensors

      ella accumulate --past wpast.safetensors --drop amazon

      ella accumulate --past wpast.safetensors --compact --tolerance 1e-3
    """
    from ella_cli.errors import SettingsError
    from ella_cli.past import accumulate as change_past
    from ella_cli.past import compact as compact_past
    from ella_cli.past import compactable, read_past
    from ella_cli.past.accumulation import energy_of
    from ella_cli.past.compaction import check_tolerance

    output = Output(as_json, quiet, verbose)
    if tolerance is None:
        tolerance = 1e-4
    elif not compact:
        raise SettingsError("--tolerance is of --compact", hint="give both, or leave it out")
    if compact:
        # Before anything is changed: nothing is added where it could not be compacted then.
        check_tolerance(tolerance)
        existing = read_past(past) if past.is_file() else None
        if existing is not None:
            compactable(existing)
        apart = not energy_of(existing, energy, last, decay).is_plain
        if apart or store == "dense" or shrink is not None:
            raise SettingsError(
                "--compact makes one of all tasks' factors, and "
                + ("this energy needs them apart" if apart else "a dense past has none"),
                hint="leave one of the two out",
            )
    done: Accumulated | None = None
    wishes = (adapters, drop, replace, energy, last, decay, shrink, taken_from)
    if not compact or store != "auto" or any(wish is not None for wish in wishes):
        done = change_past(
            adapters or [],
            past,
            # A new task could turn the file dense, which has no factors left to make fewer.
            store="factored" if compact else store,
            energy=energy,
            last=last,
            decay=decay,
            drop=drop or [],
            replace=dict([replace]) if replace else {},
            taken_from=taken_from,
            shrink=shrink,
            force=force,
        )
        for note in done.notes:
            output.warn(note)
        output.say(done.store_line, label="store:")
    compacted = compact_past(past, tolerance=tolerance) if compact else None
    if compacted and not compacted.modules:
        output.warn(
            f"{past} would not get smaller: its ranks are needed at tolerance {tolerance:g}"
        )
    held = compacted.past if compacted else done.past if done else None
    assert held is not None
    document = _document(held, past, done, compacted)
    shown = [_tasks(held)] if done else []
    output.result(
        document, *shown, *([_modules(compacted)] if compacted and compacted.modules else [])
    )


def _document(
    held: Past, path: Path, done: Accumulated | None, compacted: Compacted | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "past": str(path),
        "store": held.store,
        "energy": held.energy,
        "digest": held.digest,
        "bytes": path.stat().st_size,
        "base": {"model": held.base.model, "fingerprint": held.base.fingerprint},
        "tasks": [
            {
                "name": task.name, "digest": task.digest, "lambda": task.lam,
                "update_norm": task.update_norm, "rank": task.rank, "scale": task.scale,
                "date": task.date, "measured": task.name not in held.unmeasured,
            }
            for task in held.tasks
        ],
    }  # fmt: skip
    if done:
        document |= {
            "added": [task.name for task in done.added],
            "dropped": list(done.dropped),
            "factored_bytes": done.factored_bytes,
            "dense_bytes": done.dense_bytes,
            "notes": list(done.notes),
            "seconds": done.seconds,
        }
    if compacted:
        document["compacted"] = {
            "bytes_before": compacted.bytes_before,
            "bytes_after": compacted.bytes_after,
            "modules": [
                {
                    "name": module.name, "rank_before": module.rank_before,
                    "rank_after": module.rank_after, "dropped_energy": module.dropped,
                }
                for module in compacted.modules
            ],
        }  # fmt: skip
    return document


def _tasks(held: Past) -> Table:
    from rich.table import Table

    table = Table("", "task", "rank", "scale", "λ", "‖ΔW‖", "added", box=None, pad_edge=False)
    for index, task in enumerate(held.tasks, start=1):
        lam = "–" if task.lam is None else f"{task.lam:g}"
        norm = f"{task.update_norm:.4g}"
        scale = f"{task.scale:.4g}"
        table.add_row(str(index), task.name, str(task.rank), scale, lam, norm, task.date[:10])
    return table


def _modules(compacted: Compacted) -> Table:
    from rich.table import Table

    table = Table("module", "rank", "energy dropped", box=None, pad_edge=False)
    for module in compacted.modules:
        ranks = f"{module.rank_before} → {module.rank_after}"
        table.add_row(module.name, ranks, f"{module.dropped:.1e}")
    sizes = f"{compacted.bytes_before / 1e6:.3g} MB → {compacted.bytes_after / 1e6:.3g} MB"
    table.add_row(f"{len(compacted.modules)} modules", sizes, "")
    return table
