"""Stages against tasks: the cells of the accuracy matrix, and the results they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ella_cli import files, processes
from ella_cli.adapter import Adapter
from ella_cli.config import EvaluateSettings, RunSettings, optim_in_effect
from ella_cli.errors import SettingsError, StorageError
from ella_cli.evaluate.grid import Cell, Stage, evaluate_grid
from ella_cli.evaluate.results import known_single_rows, results_document
from ella_cli.model.base import Base
from ella_cli.progress import Progress
from ella_cli.run_paths import stage_name
from ella_cli.sequence.run_folder import RunFolder, method_of, stage_names
from ella_cli.tasks import Task
from ella_cli.training.methods import Method


def stages_of(method: Method, names: Sequence[str], adapters: Sequence[Adapter]) -> list[Stage]:
    """What the model is after each stage trained so far.

    Args:
        names: of the stages; what an adapter says of itself may be a stranger's.
    """
    stages = []
    for index, (name, adapter) in enumerate(zip(names, adapters, strict=False)):
        summed = tuple(adapters[: index + 1]) if method.summed else (adapter,)
        # A task trained alone says nothing about the others.
        alone = not (method.summed or method.carried or method.joint)
        stages.append(Stage(stage_name(index, name), summed, tasks=(index,) if alone else None))
    return stages


def score_run(
    run: RunFolder,
    base: Callable[[], Base],
    tasks: Sequence[Task],
    adapters: Sequence[Adapter],
    settings: RunSettings,
    evaluation: EvaluateSettings,
    alone: Mapping[str, Sequence[float]] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Scores every stage trained so far, cell by cell, and writes results.json.

    Args:
        alone: what `single_rows` found, for plasticity FWT; None for what the results have.
    """
    method = method_of(settings)
    names = stage_names(method, [task.spec.name for task in tasks])
    stages = [Stage("base"), *stages_of(method, names, adapters)]
    # A joint training has one stage, and that one has seen everything.
    chosen = stages if method.joint else choose(stages, len(tasks), evaluation)
    grid = evaluate_grid(base(), chosen, tasks, evaluation, run.scores, progress=progress)
    untouched, rows = grid[0], grid[1:]
    if method.joint:
        # Its one stage is the last row: all tasks have been seen.
        rows = [*empty_rows(len(tasks) - len(rows), len(tasks)), *rows]
    rows += empty_rows(len(tasks) - len(rows), len(tasks))
    facts = _facts(settings, adapters, evaluation, base())
    if alone is None:
        alone = _alone_before(run, tasks, facts, progress)
    document = results_document(tasks, rows, untouched, alone, facts)
    write_results(run, document)
    return document


def _alone_before(
    run: RunFolder, tasks: Sequence[Task], facts: Mapping[str, Any], progress: Progress
) -> Mapping[str, Sequence[float]] | None:
    """What an earlier command was given for plasticity FWT, where it is still scored alike."""
    try:
        return known_single_rows(run.results, tasks, facts)
    except (SettingsError, StorageError) as error:
        progress.warn(
            f"plasticity FWT is left out: {error.message}; name a run that fits with --single"
        )
        return None


def choose(stages: Sequence[Stage], count: int, evaluation: EvaluateSettings) -> list[Stage]:
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


def write_results(run: RunFolder, document: Mapping[str, Any]) -> None:
    """results.json, written by one process for all."""
    if processes.is_main():
        files.write_json(run.results, document)
    processes.wait()


def empty_rows(count: int, width: int) -> list[list[Cell | None]]:
    """Rows of the matrix for stages that are not there."""
    return [[None] * width for _ in range(count)]


def _facts(
    settings: RunSettings,
    adapters: Sequence[Adapter],
    evaluation: EvaluateSettings,
    base: Base,
) -> Mapping[str, Any]:
    method = method_of(settings)
    asked = method.lam if settings.lam is None else settings.lam
    return {
        "method": settings.method,
        "lambda": asked if method.penalty else 0.0,
        # What it was for each stage: found anew for each with `auto`.
        "lambdas": [(adapter.manifest or {}).get("lambda") for adapter in adapters],
        "rho": _rho(adapters) if asked == "auto" else None,
        # What was protected; the past's own where none was asked for.
        "energy": _energy(settings, adapters),
        "importance": settings.importance if settings.method == "ella" else None,
        "optim": optim_in_effect(settings.model_dump(by_alias=True)),
        "last": settings.last,
        "decay": settings.decay,
        "seed": settings.seed,
        **evaluation_facts(evaluation, base),
    }


def _rho(adapters: Sequence[Adapter]) -> float | None:
    """What `auto` took; a first task asks for none."""
    found = (((adapter.manifest or {}).get("strength") or {}).get("rho") for adapter in adapters)
    return next((rho for rho in found if rho is not None), None)


def _energy(settings: RunSettings, adapters: Sequence[Adapter]) -> str | None:
    if settings.method != "ella":
        return None
    used = [(adapter.manifest or {}).get("energy") for adapter in adapters]
    return settings.energy or next((kind for kind in used if kind), None)


def evaluation_facts(evaluation: EvaluateSettings, base: Base) -> Mapping[str, Any]:
    """What of the evaluation a reader of results.json has to know."""
    return {
        "decode": evaluation.decode,
        "header": evaluation.header,
        "validation": evaluation.validation,
        "precision": base.precision,
        "tokenizer": base.tokenizer_digest,
        "base_model": {"model": evaluation.model, "fingerprint": base.fingerprint},
    }
