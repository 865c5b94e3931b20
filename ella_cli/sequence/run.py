"""The steps of a run, in order, each skipped if its result is already there.

A stage is finished when its adapter folder is there (it appears whole), added when its adapter is
in the past, scored when its cells are files. So a run killed anywhere goes on from the last
finished step, and ends with the results it would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ella_cli import processes
from ella_cli.adapter import Adapter
from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError
from ella_cli.evaluate.grid import evaluation_of
from ella_cli.evaluate.results import single_rows
from ella_cli.model.base import Base
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.past import usual_energy
from ella_cli.past.record import EnergyKind
from ella_cli.progress import SILENCE, Progress
from ella_cli.sequence.first_stage import check_first_stage, take_first_stage
from ella_cli.sequence.loading import base_once, load_tasks
from ella_cli.sequence.run_folder import RunFolder, method_of, stage_names
from ella_cli.sequence.score import evaluation_facts, score_run
from ella_cli.tasks import Task, resolve_order
from ella_cli.training.assignment import Assignment
from ella_cli.training.checks import check_frames, check_modules
from ella_cli.training.methods import Method
from ella_cli.training.replay import kept_rows
from ella_cli.training.strength import check_strengths
from ella_cli.training.task import train_task


def run_order(
    settings: RunSettings,
    folder: Path,
    *,
    single: Path | None = None,
    first_stage: Path | None = None,
    command: str = "",
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Trains, accumulates and evaluates a whole order; returns what results.json then holds.

    Args:
        settings: everything that decides the result.
        folder: the run's folder; a run begun there with the same settings goes on.
        single: a finished run of method single, for plasticity FWT.
        first_stage: a run whose first stage is this one's too and need not be trained again.
        command: what the user typed, for the record.

    Raises:
        SettingsError: the folder belongs to another run or another command is at work there,
            `first_stage` is another stage, or a later stage would fail for what is set.
        EllaError: whatever a task, the model, an adapter or the past has against it.
    """
    run = RunFolder(folder)
    order = resolve_order(settings.order)
    check_run(settings, order)
    tasks = load_tasks(order, settings, progress)
    base = base_once(settings, progress)
    scored = evaluation_facts(evaluation_of(settings), base())
    alone = single_rows(single, tasks, scored) if single else None
    for note in check_frames(base(), tasks, settings, generated=settings.decode == "generate"):
        progress.warn(note)
    check_modules(base(), settings)
    facts = {
        "base": {"model": settings.model, "fingerprint": base().fingerprint},
        "data_fingerprints": {task.spec.name: task.fingerprint for task in tasks},
        "train_digests": {task.spec.name: task.train_digest for task in tasks},
        "task_digests": {task.spec.name: task.spec.digest for task in tasks},
        # What --dtype auto was here; on another machine it may be something else.
        "precision": base().precision,
        "tokenizer": base().tokenizer_digest,
        # They decide the global batch.
        "processes": processes.count(),
    }
    with run.at_work():
        name = tasks[0].spec.name
        with processes.main_first():
            if first_stage is not None and run.adapter(0, name) is None:
                # Before the folder is claimed: what is refused leaves it free.
                record = {"settings": settings.model_dump(mode="json", by_alias=True), **facts}
                check_first_stage(first_stage, name, record, settings)
            run.claim(settings, [task.spec.name for task in tasks], command, facts)
        if first_stage is not None:
            take_first_stage(run, first_stage, name, settings, progress)
        adapters = train_stages(run, base, tasks, settings, progress)
        scored_by = evaluation_of(settings)
        return score_run(run, base, tasks, adapters, settings, scored_by, alone, progress)


def check_run(settings: RunSettings, order: Sequence[str]) -> None:
    """
    Raises:
        SettingsError: a later stage of this order would fail for what is set.
    """
    check_strengths(settings, len(stage_names(method_of(settings), order)))


def train_stages(
    run: RunFolder,
    base: Callable[[], Base],
    tasks: Sequence[Task],
    settings: RunSettings,
    progress: Progress = SILENCE,
) -> list[Adapter]:
    """The adapters of all stages, trained now where they are not there yet.

    Raises:
        SettingsError: a stage is gone on which later ones were trained, or the past holds other
            updates than those of the stages, or weighs them otherwise than the settings.
    """
    method = method_of(settings)
    names = stage_names(method, [task.spec.name for task in tasks])
    if method.summed or method.carried:
        run.finished(names)
    adapters: list[Adapter] = []
    for index, name in enumerate(names):
        adapter = run.adapter(index, name)
        if adapter is None:
            _bring_past_up(run, method, adapters, settings, progress)
            assignment = Assignment(
                name=name,
                tasks=tasks if method.joint else [tasks[index]],
                order_index=index,
                past=_past_of(run, adapters, settings) if method.summed and adapters else None,
                earlier=tuple(adapters),
                replayed=_replayed(tasks[:index], settings) if method.replays else (),
            )
            train_task(base(), assignment, settings, run.stage(index, name), progress=progress)
            adapter = run.adapter(index, name)
            assert adapter is not None
        adapters.append(adapter)
    _bring_past_up(run, method, adapters, settings, progress)
    return adapters


def _past_of(run: RunFolder, adapters: Sequence[Adapter], settings: RunSettings) -> Past:
    past = read_past(run.past)
    hint = "delete it: the same command makes it anew from the stages, and goes on"
    if [task.digest for task in past.tasks] != [adapter.digest for adapter in adapters]:
        raise SettingsError(
            f"{run.past} holds {', '.join(task.name for task in past.tasks)}, which is not the sum "
            f"of the {len(adapters)} stages before this one",
            hint=hint,
        )
    # Without one asked for, the first stage decided, or all where the file was made anew.
    usual = {usual_energy(adapters[:1]), usual_energy(adapters)}
    energies = {settings.energy} if settings.energy else usual
    asked = [EnergyKind.asked(energy, settings.last, settings.decay) for energy in energies]
    kind = past.record.energy
    same = EnergyKind.asked(kind.kind, kind.last, kind.decay) in asked
    if not same or any(task.shrink is not None for task in past.tasks):
        raise SettingsError(
            f"{run.past} was changed since: it weighs, shrinks or protects otherwise than this run",
            hint=hint,
        )
    return past


def _replayed(tasks: Sequence[Task], settings: RunSettings) -> Sequence[Task]:
    return kept_rows(tasks, settings.replay_share, settings.seed)


def _bring_past_up(
    run: RunFolder,
    method: Method,
    adapters: Sequence[Adapter],
    settings: RunSettings,
    progress: Progress,
) -> None:
    """Adds the adapters that the past does not hold yet."""
    if not method.summed:
        return
    with processes.main_first():
        for note in _add_missing(run, adapters, settings):
            progress.note(note)


def _add_missing(
    run: RunFolder, adapters: Sequence[Adapter], settings: RunSettings
) -> Sequence[str]:
    """Adds them; gives what there is to say of it."""
    held = read_past(run.past) if run.past.is_file() else None
    missing = [one.path for one in adapters if held is None or held.lacks(one)]
    if not missing:
        return ()
    return accumulate(
        missing, run.past, energy=settings.energy, last=settings.last, decay=settings.decay
    ).notes
