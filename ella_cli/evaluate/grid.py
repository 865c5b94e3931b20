"""Every stage on every task, a file a cell: what is there and still true is not computed again."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ella_cli import files, processes
from ella_cli.adapter import Adapter
from ella_cli.config import FREE, EvalFields, EvaluateSettings
from ella_cli.evaluate.decode import generate_answers, rank_labels, sees_all
from ella_cli.kernels import add_update
from ella_cli.model.base import Base
from ella_cli.model.fold import Fold
from ella_cli.past import Past
from ella_cli.progress import SILENCE, Progress
from ella_cli.tasks import Task, build_prompt, score_rows
from ella_cli.tasks.batches import Encoder

FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """The model at one point of a sequence: the base plus the sum of these adapters' updates.

    Attributes:
        name: names its folder of scores, such as 02-amazon, or base.
        past: such a sum, where it is at hand instead of the adapters.
        tasks: indices of the tasks it is scored on; None for all.
    """

    name: str
    adapters: tuple[Adapter, ...] = ()
    past: Past | None = None
    tasks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One stage's answers on one task.

    Attributes:
        score: mean of `rows`, in [0, 1].
        rows: one value a test row, in [0, 1].
        predictions: the answers, in row order.
    """

    score: float
    rows: tuple[float, ...]
    predictions: tuple[str, ...]


def evaluate_grid(
    base: Base,
    stages: Sequence[Stage],
    tasks: Sequence[Task],
    settings: EvaluateSettings,
    folder: Path,
    *,
    progress: Progress = SILENCE,
) -> list[list[Cell | None]]:
    """Scores of each stage (outer) on each task (inner); None where a stage is not scored.

    Args:
        base: the base model, on which each stage's updates are folded in turn.
        folder: holds `STAGE/TASK.json`; cells there are used again if model, adapters, rows and
            decoding are the same.

    Raises:
        StorageError: a cell cannot be read or written.
    """
    keys = [[_keys(base, stage, task, settings) for task in tasks] for stage in stages]
    # What is there is shown, asked for or not.
    grid = [
        [_finished(_path(folder, stage, task), key) for task, key in zip(tasks, own, strict=True)]
        for stage, own in zip(stages, keys, strict=True)
    ]
    # All have to have looked before one adds a cell.
    processes.wait()
    missing = _share(
        [
            [i for i in _chosen(stage, tasks) if row[i] is None]
            for stage, row in zip(stages, grid, strict=True)
        ]
    )
    rows_left = sum(len(tasks[i].test) for cells in missing for i in cells)
    advance = progress.begin("score", rows_left) if rows_left else _nobody
    # Every stage is asked the same; as lists they would take nine times the room.
    prompts: dict[int, list[array[int]]] = {}
    for stage, own, row, cells in zip(stages, keys, grid, missing, strict=True):
        if not cells:
            continue
        with Fold(base.model) as fold:
            fold.set(_names(stage), partial(_delta, stage))
            for i in cells:
                started = time.monotonic()
                words = f"{stage.name} on {tasks[i].spec.name}"
                if i not in prompts:
                    encoded = encode_prompts(base, tasks[i], settings)
                    prompts[i] = [array("i", ids) for ids in encoded]
                cell = score_task(
                    base,
                    tasks[i],
                    [ids.tolist() for ids in prompts[i]],
                    settings,
                    lambda n, w=words: advance(n, w),  # type: ignore[misc]
                )
                seconds = round(time.monotonic() - started, 2)
                document = _document(cell, stage, tasks[i], settings, base, own[i][0], seconds)
                files.write_json(_path(folder, stage, tasks[i]), document)
                row[i] = cell
    if processes.count() > 1:
        processes.wait()
        for stage, own, row in zip(stages, keys, grid, strict=True):
            row[:] = [
                _finished(_path(folder, stage, task), key)
                for task, key in zip(tasks, own, strict=True)
            ]
    return grid


def encode_prompts(base: Base, task: Task, settings: EvaluateSettings) -> list[list[int]]:
    """Token ids of the test rows' prompts.

    Raises:
        TaskError: a label has more tokens than an answer may have, or a prompt's frame than a
            prompt may.
    """
    encoder = _encoder(base, settings)
    encoder.check_labels(task.spec.name, task.spec.labels, generated=not _is_ranked(task, settings))
    return [
        encoder.prompt(build_prompt(task.spec, row, header=settings.header)) for row in task.test
    ]


def score_task(
    base: Base,
    task: Task,
    prompts: Sequence[list[int]],
    settings: EvaluateSettings,
    answered: Callable[[int], None] = lambda count: None,
) -> Cell:
    """The answers of the model as it stands to the test rows of `task`, and their scores.

    Args:
        prompts: what `encode_prompts` gives.
        answered: told after each batch how many rows it had.
    """
    answer = rank_labels if _is_ranked(task, settings) else generate_answers
    predictions = answer(
        base,
        _encoder(base, settings),
        prompts,
        task.spec.labels,
        batch_size=settings.per_device_eval_batch_size,
        answered=answered,
    )
    rows = score_rows(task.spec, predictions, task.test)
    return Cell(fmean(rows), tuple(rows), tuple(predictions))


def _encoder(base: Base, settings: EvaluateSettings) -> Encoder:
    return base.encoder(settings.max_source_length, settings.max_target_length)


def _is_ranked(task: Task, settings: EvaluateSettings) -> bool:
    # Free text has no set of labels to rank.
    return settings.decode == "rank" and bool(task.spec.labels)


def evaluation_of(settings: EvalFields) -> EvaluateSettings:
    """The evaluation's part of a run's settings."""
    kept = set(EvaluateSettings.model_fields)
    return EvaluateSettings(**settings.model_dump(include=kept))


def _share(missing: list[list[int]]) -> list[list[int]]:
    """Every n-th of the missing cells, where n processes score."""
    flat = [(stage, i) for stage, cells in enumerate(missing) for i in cells]
    mine = set(flat[processes.rank() :: processes.count()])
    return [[i for i in cells if (stage, i) in mine] for stage, cells in enumerate(missing)]


def _nobody(done: int, words: str) -> None:
    return


def _names(stage: Stage) -> Sequence[str]:
    if stage.past is not None:
        return stage.past.names
    return list(dict.fromkeys(name for adapter in stage.adapters for name in adapter.names))


def _delta(stage: Stage, name: str) -> Tensor:
    if stage.past is not None:
        return stage.past.delta(name)
    updates = [adapter.update(name) for adapter in stage.adapters if name in adapter.sources]
    shape = (updates[0].b.shape[0], updates[0].a.shape[1])
    total = torch.zeros(shape)  # (M, N) f32
    for update in updates:
        add_update(total, update.b, update.a, update.scale)
    return total


def _held(stage: Stage) -> Sequence[Adapter | Past]:
    return stage.adapters if stage.past is None else (stage.past,)


def _keys(base: Base, stage: Stage, task: Task, settings: EvaluateSettings) -> tuple[str, str, str]:
    """What a cell depends on; the same as of one that tells no tokenizer; and no precision."""
    # Where rows and model came from changes no score; the fingerprints tell what they were.
    asked = settings.model_dump(mode="json", exclude={*FREE, "data", "model"})

    def key(dtype: str, *more: str) -> str:
        facts = [
            FORMAT,
            base.fingerprint,
            [held.digest for held in _held(stage)],
            task.fingerprint,
            task.spec.digest,
            asked | {"dtype": dtype},
            *_otherwise(base, settings),
            *more,
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    # Not how the weights' precision was asked for, but what it is.
    return key(base.precision, base.tokenizer_digest), key(base.precision), key(settings.dtype)


def _otherwise(base: Base, settings: EvaluateSettings) -> list[object]:
    """What is read otherwise than most models read, and was once read as those do."""
    room = base.encoder(settings.max_source_length, settings.max_target_length).max_source
    alone = settings.decode == "rank" and base.kind == "decoder" and not sees_all(base, sys.maxsize)
    cut = [room] if room < settings.max_source_length else []
    return [*cut, *(["one by one"] if alone else [])]


def _chosen(stage: Stage, tasks: Sequence[Task]) -> Sequence[int]:
    return range(len(tasks)) if stage.tasks is None else stage.tasks


def _path(folder: Path, stage: Stage, task: Task) -> Path:
    return folder / stage.name / f"{task.spec.name}.json"


def _finished(path: Path, keys: tuple[str, str, str]) -> Cell | None:
    if not path.is_file():
        return None
    document = files.read_object(path)
    # An older ella noted less.
    told = ["tokenizer" in document, "precision" in document, True]
    key = keys[told.index(True)]
    if document.get("key") != key or not {"score", "rows", "predictions"} <= document.keys():
        return None
    return Cell(document["score"], tuple(document["rows"]), tuple(document["predictions"]))


def _document(
    cell: Cell,
    stage: Stage,
    task: Task,
    settings: EvaluateSettings,
    base: Base,
    key: str,
    seconds: float,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "stage": stage.name,
        "adapters": [one.task for one in stage.adapters]
        if stage.past is None
        else [one.name for one in stage.past.tasks],
        "task": task.spec.name,
        "metric": task.spec.metric,
        "decode": settings.decode,
        "precision": base.precision,
        "tokenizer": base.tokenizer_digest,
        "score": cell.score,
        "rows": list(cell.rows),
        "predictions": list(cell.predictions),
        "answers": [row.answer for row in task.test],
        "seconds": seconds,
        "key": key,
    }
