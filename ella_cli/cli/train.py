"""`ella train`: one task on top of the past, into an adapter folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ella_cli.cli.options import DryRunOption, takes_settings
from ella_cli.cli.output import JsonOption, Output, QuietOption, VerboseOption
from ella_cli.config import TrainSettings
from ella_cli.errors import SettingsError
from ella_cli.unused import unused_settings

if TYPE_CHECKING:
    from rich.table import Table

    from ella_cli.adapter import Adapter
    from ella_cli.past import Past


@takes_settings(TrainSettings)
def train(
    *,
    settings: TrainSettings,
    task: Annotated[
        str, typer.Option("--task", help="A built-in task (`ella tasks ls`) or a folder of yours.")
    ],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", help="Becomes the adapter's folder.")
    ],
    past: Annotated[
        Path | None, typer.Option("--past", help="W_past of the earlier tasks; none for a first.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option("--earlier", help="Earlier adapters, in order, for methods that need them."),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(
            "--replay", help="A past task, again for each: some of its rows are mixed in."
        ),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Train one task on top of what was learned before.

    Without --past it is a first task. The result is a stock PEFT adapter with an ella.json
    beside it; add it to the past with `ella accumulate`.

    [bold]Examples[/]

      ella train --task dbpedia --data data -o adapters/dbpedia

      ella train --task amazon --past wpast.safetensors --data data -o adapters/amazon
    """
    output = Output(as_json, quiet, verbose)
    for note in unused_settings(settings):
        output.warn(note)
    if dry_run:
        print_settings(output, settings, task=task, past=past, output_dir=output_dir)
        return
    from ella_cli import files, locks, processes
    from ella_cli.adapter import read_adapter
    from ella_cli.cli.bar import showing_progress
    from ella_cli.model.base import load_base
    from ella_cli.past import read_past
    from ella_cli.past.task import next_index, order_index_of
    from ella_cli.sequence import ground_of, load_tasks
    from ella_cli.training.assignment import Assignment
    from ella_cli.training.replay import kept_rows
    from ella_cli.training.strength import check_strength
    from ella_cli.training.task import check_output, train_task

    _check_method(settings, past, earlier, replay)
    check_output(output_dir)
    with locks.sole(locks.lock_beside(output_dir), output_dir):
        if processes.is_main():
            # Not before: another command may just be putting it aside.
            files.bring_back(output_dir)
        held = read_past(past) if past else None
        adapters = tuple(read_adapter(folder) for folder in earlier or ())
        _check_sum(settings, past, held, adapters)
        places = [one.order_index for one in held.tasks] if held else map(order_index_of, adapters)
        index = next_index(list(places))
        check_strength(settings, index)
        with showing_progress(output) as progress:
            rows, *past_tasks = load_tasks([task, *(replay or ())], settings, progress)
            base = load_base(settings.model, dtype=settings.dtype, device=settings.device)
            if held is not None:
                base.check_ground(str(past), held.base.fingerprint)
            for adapter in adapters:
                base.check_ground(str(adapter.path), ground_of(adapter))
            kept = kept_rows(past_tasks, settings.replay_share, settings.seed)
            assignment = Assignment(rows.spec.name, [rows], index, held, adapters, kept)
            manifest = train_task(base, assignment, settings, output_dir, progress=progress)
    output.result({"adapter": str(output_dir), **manifest}, _table(output_dir, manifest))


def _check_sum(
    settings: TrainSettings, path: Path | None, held: Past | None, adapters: Sequence[Adapter]
) -> None:
    """
    Raises:
        SettingsError: the method takes earlier adapters beside their sum, and the past is another.
    """
    from ella_cli.training.methods import METHODS

    if held is None or not METHODS[settings.method].apart:
        return
    if [task.digest for task in held.tasks] != [adapter.digest for adapter in adapters]:
        raise SettingsError(
            f"{path} holds {', '.join(task.name for task in held.tasks)}, which is not the sum of "
            f"the {len(adapters)} adapters of --earlier",
            hint="name its adapters with --earlier FOLDER, again for each, in its order",
        )


def _check_method(
    settings: TrainSettings,
    past: Path | None,
    earlier: Sequence[Path] | None,
    replay: Sequence[str] | None,
) -> None:
    """
    Raises:
        SettingsError: the method makes nothing of what it was given, or lacks what it needs.
    """
    from ella_cli.training.methods import METHODS

    method = METHODS[settings.method]
    replays = method.replays
    if past and not method.summed:
        raise SettingsError(
            f"{settings.method} does not stand on a sum of updates",
            hint="name the last adapter with --earlier instead of --past"
            if method.carried
            else "leave --past out",
        )
    if past and method.apart and not earlier:
        raise SettingsError(
            f"{settings.method} needs the earlier adapters themselves beside their sum",
            hint="name them with --earlier FOLDER, again for each, in order",
        )
    if earlier and not (method.carried or method.apart):
        raise SettingsError(
            f"{settings.method} makes nothing of earlier adapters",
            hint="accumulate them into a past and name that with --past"
            if method.summed
            else "leave --earlier out",
        )
    if earlier and method.apart and not past:
        raise SettingsError(
            f"{settings.method} trains on top of the earlier adapters' sum",
            hint="accumulate them and name the past with --past",
        )
    if replay and not replays:
        raise SettingsError(
            f"{settings.method} learns no old rows again",
            hint="give --method replay with --replay, or leave it out",
        )
    if replays and past and not replay:
        raise SettingsError(
            "replay needs the past tasks whose rows it mixes in",
            hint="name them with --replay TASK, again for each",
        )


def print_settings(output: Output, settings: TrainSettings, **places: object) -> None:
    """The resolved settings, as YAML that --config takes, or as JSON."""
    import yaml

    document = settings.model_dump(mode="json", by_alias=True)
    named = {name: str(place) for name, place in places.items() if place is not None}
    lines = yaml.safe_dump(document, sort_keys=False).rstrip()
    shown = [f"# {name.replace('_', '-')}: {place}" for name, place in named.items()]
    output.result({**named, "settings": document}, "\n".join([*shown, lines]))


def _table(folder: Path, manifest: dict[str, Any]) -> Table:
    from rich.table import Table

    curves = manifest["curves"]
    table = Table.grid(padding=(0, 2))
    table.add_row("adapter", str(folder))
    earlier = manifest["past"]["tasks"]
    table.add_row("stands on", " + ".join([manifest["base"]["model"], *earlier]))
    table.add_row("method", f"{manifest['method']}, λ = {manifest['lambda']:g}")
    steps = f"{manifest['steps']} steps, global batch {manifest['batch']['global']}"
    table.add_row("training", f"{steps}, {manifest['seconds']:.0f} s")
    table.add_row("cross-entropy", f"{curves['ce'][0]:.3f} → {curves['ce'][-1]:.3f} nats a token")
    table.add_row("λ · penalty", f"{curves['weighted_penalty'][-1]:.4f} at the end")
    table.add_row("‖ΔW‖", f"{manifest['update_norm']:.3f}")
    table.add_row("next", f"ella accumulate {shlex.quote(str(folder))} --past wpast.safetensors")
    return table
