"""Stages against tasks: the cells of the accuracy matrix, and the results they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ella_cli import files, processes
from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import EvaluateSettings, RunSettings
from ella_cli.errors import SettingsError
from ella_cli.evaluate.grid import Cell, Stage, evaluate_grid, evaluation_of
from ella_cli.evaluate.results import results_document, single_rows
from ella_cli.model.base import Base
from ella_cli.model.fold import Fold
from ella_cli.progress import SILENCE, Progress
from ella_cli.sequence.loading import base_once, ground_of, load_tasks
from ella_cli.sequence.run_folder import RunFolder, method_of, stage_name, stage_names
from ella_cli.tasks import Task, resolve_order
from ella_cli.training.methods import Method


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
        SettingsError: no run there, or its order is another one.
    """
    run = RunFolder(folder)
    if not run.record.is_file():
        raise SettingsError(f"{folder} holds no run.json", hint="name a folder made by `ella run`")
    settings = RunSettings.model_validate(files.read_json(run.record)["settings"])
    if order is not None and resolve_order(order) != resolve_order(settings.order):
        raise SettingsError(
            f"{folder} is a run of order {settings.order}, not of {order}",
            hint="leave --order out, or name a run of that order",
        )
    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    chosen = evaluation_of(settings).model_copy(update=given)
    tasks = load_tasks(resolve_order(settings.order), chosen, progress)
    names = stage_names(method_of(settings), [task.spec.name for task in tasks])
    found = (run.adapter(i, name) for i, name in enumerate(names))
    adapters = [adapter for adapter in found if adapter is not None]
    base = base_once(chosen, progress)
    return score_run(run, base, tasks, adapters, settings, chosen, single, progress)


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
        SettingsError: more adapters than tasks.
        AdapterError: a folder is no adapter.
        ModelError, ShapeError: an adapter was made on another base model.
    """
    tasks = load_tasks(resolve_order(order), evaluation, progress)
    adapters = [read_adapter(one) for one in folders]
    if len(adapters) > len(tasks):
        raise SettingsError(
            f"{len(adapters)} adapters for the {len(tasks)} tasks of order {order}",
            hint="give one adapter a task, in the order of the tasks",
        )
    base = base_once(evaluation, progress)
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
    chosen = _choose([Stage("base"), *stages], len(tasks), evaluation)
    grid = evaluate_grid(base, None, chosen, tasks, evaluation, run.scores, progress=progress)
    rows = [*grid[1:], *_empty_rows(len(tasks) - len(stages), len(tasks))]
    facts = {
        "method": "adapters",
        "lambda": None,
        "seed": None,
        "adapters": [str(adapter.path) for adapter in adapters],
        **_evaluation_facts(evaluation, base().fingerprint),
    }
    alone = single_rows(single) if single else None
    document = results_document(tasks, rows, grid[0], alone, facts)
    _write_results(run, document)
    return document


def stages_of(method: Method, adapters: Sequence[Adapter]) -> list[Stage]:
    """What the model is after each stage trained so far."""
    stages = []
    for index, adapter in enumerate(adapters):
        summed = tuple(adapters[: index + 1]) if method.summed else (adapter,)
        # A task trained alone says nothing about the others.
        alone = not (method.summed or method.carried or method.joint)
        stages.append(
            Stage(stage_name(index, adapter.task), summed, tasks=(index,) if alone else None)
        )
    return stages


def score_run(
    run: RunFolder,
    base: Callable[[], Base],
    tasks: Sequence[Task],
    adapters: Sequence[Adapter],
    settings: RunSettings,
    evaluation: EvaluateSettings,
    single: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Scores every stage trained so far, cell by cell, and writes results.json."""
    method = method_of(settings)
    stages = [Stage("base"), *stages_of(method, adapters)]
    # A joint training has one stage, and that one has seen everything.
    chosen = stages if method.joint else _choose(stages, len(tasks), evaluation)
    grid = evaluate_grid(base, None, chosen, tasks, evaluation, run.scores, progress=progress)
    untouched, rows = grid[0], grid[1:]
    if method.joint:
        # Its one stage is the last row: all tasks have been seen.
        rows = [*_empty_rows(len(tasks) - len(rows), len(tasks)), *rows]
    rows += _empty_rows(len(tasks) - len(rows), len(tasks))
    document = results_document(
        tasks,
        rows,
        untouched,
        single_rows(single) if single else None,
        _facts(settings, adapters, evaluation, base().fingerprint),
    )
    _write_results(run, document)
    return document


def _choose(stages: Sequence[Stage], count: int, evaluation: EvaluateSettings) -> list[Stage]:
    """The stages, the untouched base first, each with the tasks that are asked of it."""
    if evaluation.cells == "all":
        return list(stages)
    # Right after a task itself and the next, for learned and FWT; after the last all, for OA.
    wanted = [set(range(1, count)), *({j, j + 1} for j in range(count - 1)), set(range(count))]
    return [
        replace(stage, tasks=tuple(i for i in _asked(stage, count) if i in own))
        for stage, own in zip(stages, wanted, strict=False)
    ]


def _asked(stage: Stage, count: int) -> Sequence[int]:
    return range(count) if stage.tasks is None else stage.tasks


def _write_results(run: RunFolder, document: Mapping[str, Any]) -> None:
    if processes.is_main():
        files.write_json(run.results, document)
    processes.wait()


def _empty_rows(count: int, width: int) -> list[list[Cell | None]]:
    return [[None] * width for _ in range(count)]


def _facts(
    settings: RunSettings,
    adapters: Sequence[Adapter],
    evaluation: EvaluateSettings,
    fingerprint: str,
) -> Mapping[str, Any]:
    method = method_of(settings)
    asked = method.lam if settings.lam is None else settings.lam
    return {
        "method": settings.method,
        "lambda": asked if method.penalty else 0.0,
        # What it was for each stage: found anew for each with `auto`.
        "lambdas": [(adapter.manifest or {}).get("lambda") for adapter in adapters],
        "rho": settings.rho if asked == "auto" else None,
        # What was protected; the past's own where none was asked for.
        "energy": _energy(settings, adapters),
        "seed": settings.seed,
        **_evaluation_facts(evaluation, fingerprint),
    }


def _energy(settings: RunSettings, adapters: Sequence[Adapter]) -> str | None:
    if settings.method != "ella":
        return None
    used = [(adapter.manifest or {}).get("energy") for adapter in adapters]
    return settings.energy or next((kind for kind in used if kind), None)


def _evaluation_facts(evaluation: EvaluateSettings, fingerprint: str) -> Mapping[str, Any]:
    return {
        "decode": evaluation.decode,
        "header": evaluation.header,
        "validation": evaluation.validation,
        "base_model": {"model": evaluation.model, "fingerprint": fingerprint},
    }
