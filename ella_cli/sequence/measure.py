"""The curvature of a task whose adapter is there already: on the ground it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import MeasureSettings
from ella_cli.errors import AdapterError, PastError, SettingsError
from ella_cli.inspect.run_stages import past_before
from ella_cli.model.base import load_base
from ella_cli.model.fold import Fold
from ella_cli.model.lora import detach_lora, load_lora, lora_layers
from ella_cli.past import Past, read_past
from ella_cli.past.task import order_index_of
from ella_cli.progress import SILENCE, Progress
from ella_cli.sequence.loading import ground_of, load_tasks
from ella_cli.tasks import Task
from ella_cli.training.assignment import stage_seed
from ella_cli.training.measuring import (
    check_measurable,
    measure_task,
    note_little,
    write_measured,
)
from ella_cli.training.task import encode_rows

# What decides which rows a task has and how they are read, and what the weights were.
_OF_ROWS = (
    "header", "limit", "limit_test", "max_source_length", "max_target_length", "seed", "validation",
    "dtype",
)  # fmt: skip


def measure_adapter(
    folder: Path,
    task: str,
    settings: MeasureSettings,
    *,
    past: Path | None = None,
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Writes `curvature.safetensors` into an adapter's folder; returns what a manifest says of it.

    Args:
        folder: a PEFT LoRA adapter.
        task: name or folder of the task it has learnt.
        settings: model, dtype, header, lengths, limits and seed unless set are the adapter's own.
        past: what the adapter was trained on top of, or a later state of it, which is then cut
            before the adapter; by default the earlier stages of the run that it is a stage of.

    Raises:
        AdapterError, PastError, TaskError, ModelError: one of them cannot be used.
        SettingsError: the adapter has learnt another task or stands on a past that is not known,
            or no row is to be looked at.
    """
    if not settings.curvature_rows:
        raise SettingsError(
            "curvature-rows = 0 leaves nothing to measure", hint="give --curvature-rows 64"
        )
    adapter = read_adapter(folder)
    ground = _ground(adapter, past)
    trained_on = ((adapter.manifest or {}).get("past") or {}).get("digest")
    # Curvatures, which may have come or been cut since, are in the digest too, and not folded.
    bare = ground if past is not None and ground is not None and not ground.curvatures else None
    if bare is not None and trained_on not in (None, bare.digest):
        progress.warn(
            f"{past} is not what {adapter.task} was trained on: its updates or its energy are "
            "others; the curvature is measured on top of it as it is"
        )
    settings = _as_trained(adapter, settings)
    (rows,) = load_tasks([task], settings, progress)
    _check_task(adapter, rows, progress)
    base = load_base(_model(adapter, settings), dtype=settings.dtype, device=settings.device)
    base.check_ground(str(folder), ground_of(adapter))
    encoded = encode_rows(base, [rows], settings)
    # Its stage's, as at the end of its training.
    seed = stage_seed(settings, order_index_of(adapter) or 0)
    with Fold(base.model) as fold:
        if ground is not None:
            fold.set(ground.names, ground.delta)
        model = load_lora(base, str(folder))
        try:
            check_measurable(base, lora_layers(model))
            measured, facts = measure_task(
                base,
                model,
                encoded,
                count=settings.curvature_rows,
                rank=settings.energy_rank,
                seed=seed,
                importance=settings.importance,
                name=adapter.task,
                progress=progress,
            )
        finally:
            detach_lora(model)
    if settings.importance == "auto":
        note_little(adapter.task, facts, progress)
    provenance = {
        "task": adapter.task,
        "base": {"model": base.source, "fingerprint": base.fingerprint},
        "data": {"fingerprint": rows.fingerprint},
        "past": {"digest": ground.digest if ground else None},
        "curvature": facts,
    }
    write_measured(folder, measured, provenance, seed=seed)
    return facts


def _as_trained(adapter: Adapter, settings: MeasureSettings) -> MeasureSettings:
    """The settings, with what is not set as the adapter's rows were read when it was trained."""
    trained = (adapter.manifest or {}).get("settings")
    if not isinstance(trained, dict):
        return settings
    given = settings.model_dump(exclude_unset=True, by_alias=True)
    try:
        return MeasureSettings.model_validate(
            {name: trained[name] for name in _OF_ROWS if name in trained} | given
        )
    except ValidationError as error:
        raise AdapterError(
            f"{adapter.path}: its ella.json has settings that none can train with",
            hint="the file was changed by hand; restore it, or take it away",
        ) from error


def _check_task(adapter: Adapter, task: Task, progress: Progress) -> None:
    manifest = adapter.manifest or {}
    if manifest.get("task") not in (None, task.spec.name):
        raise SettingsError(
            f"{adapter.path} has learnt {adapter.task}, not {task.spec.name}",
            hint=f"give --task {adapter.task}, or the folder of that task",
        )
    known = manifest.get("data")
    trained = known.get("fingerprint") if isinstance(known, dict) else None
    if trained not in (None, task.fingerprint):
        progress.note(
            f"{task.spec.name}: these are other rows than the adapter was trained on; give the "
            "same data and limits where you can"
        )


def _model(adapter: Adapter, settings: MeasureSettings) -> str:
    if "model" in settings.model_fields_set:
        return settings.model
    known = ((adapter.manifest or {}).get("base") or {}).get("model") or adapter.base_model
    return str(known or settings.model)


def _ground(adapter: Adapter, past: Path | None) -> Past | None:
    """What was in the weights beneath the adapter; None for the base alone."""
    known = (adapter.manifest or {}).get("past")
    stands_on = (known.get("tasks") if isinstance(known, dict) else None) or []
    if past is not None:
        ground = _before(read_past(past), adapter)
        held = [task.name for task in ground.tasks] if ground else []
        if known and held != stands_on:
            raise PastError(
                f"{past} holds {_listed(held)} beneath {adapter.task}, which was trained on top "
                f"of {_listed(stands_on)}",
                hint="name the past it was trained on, or a later state of it",
            )
        return ground
    if not stands_on:
        return None
    try:
        return past_before(adapter.path)
    except SettingsError as error:
        raise SettingsError(
            f"{adapter.path} was trained on top of {_listed(stands_on)}",
            hint="name that past with --past FILE",
        ) from error


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "no task"


def _before(past: Past, adapter: Adapter) -> Past | None:
    digests = [task.digest for task in past.tasks]
    if adapter.digest not in digests:
        return past
    index = digests.index(adapter.digest)
    if index == 0:
        return None
    earlier = past.first(index)
    if earlier is None:
        raise PastError(
            f"{past.path} holds {adapter.task} already, and cannot be cut before it",
            hint="name the past as it was before, or its run's stage",
        )
    return earlier
