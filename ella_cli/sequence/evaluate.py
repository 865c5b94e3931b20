"""Scoring what lies on disk already: a run's stages, the sums of some adapters, a past file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ella_cli.adapter import read_adapter
from ella_cli.config import EvaluateSettings
from ella_cli.errors import SettingsError
from ella_cli.evaluate.grid import Stage, evaluate_grid, evaluation_of
from ella_cli.evaluate.results import results_document, single_rows
from ella_cli.model.fold import Fold
from ella_cli.past import read_past
from ella_cli.past.task import objections
from ella_cli.progress import SILENCE, Progress
from ella_cli.run_paths import stage_name
from ella_cli.sequence.loading import base_once, ground_of, load_tasks
from ella_cli.sequence.run_folder import RunFolder, method_of, stage_names
from ella_cli.sequence.score import (
    choose,
    empty_rows,
    evaluation_facts,
    score_run,
    write_results,
)
from ella_cli.tasks import resolve_order

# How they were trained is written beside adapters, where it is known at all.
_UNKNOWN = {"lambda": None, "seed": None}


def evaluate_run(
    folder: Path,
    asked: EvaluateSettings,
    *,
    order: str | None = None,
    single: Path | None = None,
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Scores the finished stages of a run, also of one whose training is not finished.

    Args:
        asked: what was set of it wins over the run's own settings; the rest is the run's.
        order: must name the run's own order, if given.

    Raises:
        SettingsError: no sound run there, a stage of it is missing, its order is another one, or
            another command is at work there.
        ModelError: `asked` names another base model than the run's.
    """
    run = RunFolder(folder)
    settings = run.settings()
    if order is not None and resolve_order(order) != resolve_order(settings.order):
        raise SettingsError(
            f"{folder} is a run of order {settings.order}, not of {order}",
            hint="leave --order out, or name a run of that order",
        )
    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    record = run.read()
    # As it was scored before, whatever `auto` is on this machine.
    before = {"dtype": record["precision"]} if "precision" in record else {}
    chosen = evaluation_of(settings).model_copy(update=before | given)
    tasks = load_tasks(resolve_order(settings.order), chosen, progress)
    names = stage_names(method_of(settings), [task.spec.name for task in tasks])
    method = method_of(settings)
    adapters = run.finished(names, alone=not (method.summed or method.carried))
    base = base_once(chosen, progress)
    if chosen.dtype == settings.dtype or "float16" not in (chosen.dtype, settings.dtype):
        # Loaded as float16, the same weights may have other values, and another fingerprint.
        base().check_ground(str(folder), record["base"].get("fingerprint"))
    known = evaluation_facts(chosen, base())
    alone = single_rows(single, tasks, known) if single else None
    with run.at_work():
        return score_run(run, base, tasks, adapters, settings, chosen, alone, progress)


def evaluate_adapters(
    folders: Sequence[Path],
    order: str,
    evaluation: EvaluateSettings,
    folder: Path,
    *,
    single: Path | None = None,
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Scores the sums of the first 1, 2, ... adapters on the tasks of `order`.

    Args:
        folders: adapter folders, one a task of the order, in its order; fewer if it is unfinished.
        folder: gets scores/ and results.json.

    Raises:
        SettingsError: more adapters than tasks, or `folder` is a run's.
        AdapterError: a folder is no adapter.
        ModelError, ShapeError: an adapter was made on another base model.
    """
    tasks = load_tasks(resolve_order(order), evaluation, progress)
    adapters = [read_adapter(one) for one in folders]
    _refuse_run(folder)
    if len(adapters) > len(tasks):
        raise SettingsError(
            f"{len(adapters)} adapters for the {len(tasks)} tasks of order {order}",
            hint="give one adapter a task, in the order of the tasks",
        )
    for task, adapter in zip(tasks, adapters, strict=False):
        learned = (adapter.manifest or {}).get("task")
        if learned not in (None, "joint", task.spec.name):
            progress.warn(
                f"{adapter.path} has learned {learned} and stands for {task.spec.name}: name the "
                "adapters in the order of the tasks"
            )
    for index, adapter in enumerate(adapters):
        held = {one.task for one in adapters[:index]}
        for objection in objections(adapter, held, "the adapters before it"):
            progress.warn(objection)
    base = base_once(evaluation, progress)
    known = evaluation_facts(evaluation, base())
    alone = single_rows(single, tasks, known) if single else None
    fold = Fold(base().model)
    for adapter in adapters:
        base().check_ground(str(adapter.path), ground_of(adapter))
        # A foreign adapter has no fingerprint; what it adapts says whether it fits.
        for name in adapter.names:
            fold.check(name, adapter.shape(name))
    stages = [
        Stage(stage_name(i, task.spec.name), tuple(adapters[: i + 1]))
        for i, (task, _) in enumerate(zip(tasks, adapters, strict=False))
    ]
    run = RunFolder(folder)
    chosen = choose([Stage("base"), *stages], len(tasks), evaluation)
    grid = evaluate_grid(base(), chosen, tasks, evaluation, run.scores, progress=progress)
    rows = [*grid[1:], *empty_rows(len(tasks) - len(stages), len(tasks))]
    facts = {"method": "adapters", "adapters": [str(adapter.path) for adapter in adapters]}
    facts |= evaluation_facts(evaluation, base())
    document = results_document(tasks, rows, grid[0], alone, facts | _UNKNOWN)
    write_results(run, document)
    return document


def evaluate_past(
    file: Path,
    order: str,
    evaluation: EvaluateSettings,
    folder: Path,
    *,
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Scores the base plus the sum in a past file on the tasks of `order`: the last row alone.

    Args:
        folder: gets scores/ and results.json.

    Raises:
        SettingsError: `folder` is a run's.
        PastError: the file is none or damaged.
        ModelError, ShapeError: it was made on another base model.
    """
    _refuse_run(folder)
    past = read_past(file)
    tasks = load_tasks(resolve_order(order), evaluation, progress)
    asked, held = [task.spec.name for task in tasks], [task.name for task in past.tasks]
    if asked != held:
        progress.warn(
            f"{file} holds {', '.join(held)}; the scores are of {', '.join(asked)}, and OA is "
            "their mean"
        )
    base = base_once(evaluation, progress)
    base().check_ground(str(file), past.base.fingerprint)
    fold = Fold(base().model)
    for name in past.names:
        fold.check(name, past.shape(name))
    run = RunFolder(folder)
    # The untouched base is scored where FWT asks for it, which a last row alone does not.
    stages = [Stage("past", past=past)]
    grid = evaluate_grid(base(), stages, tasks, evaluation, run.scores, progress=progress)
    rows = [*empty_rows(len(tasks) - 1, len(tasks)), *grid]
    facts = {"method": "past", "past": {"file": str(file), "digest": past.digest, "tasks": held}}
    facts |= evaluation_facts(evaluation, base())
    document = results_document(tasks, rows, None, None, facts | _UNKNOWN)
    write_results(run, document)
    return document


def _refuse_run(folder: Path) -> None:
    if RunFolder(folder).record.is_file():
        raise SettingsError(
            f"{folder} is a run, whose own results would be lost",
            hint="give another --output-dir",
        )
