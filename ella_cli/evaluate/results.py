"""results.json: the accuracy matrix, its metrics and the rows behind it, as one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ella_cli import files
from ella_cli.accuracy import AccuracyMatrix
from ella_cli.errors import SettingsError, StorageError
from ella_cli.evaluate.grid import Cell
from ella_cli.run_paths import RunPaths
from ella_cli.tasks import Task

FORMAT = 1

Row = Sequence[Cell | None]


def results_document(
    tasks: Sequence[Task],
    rows: Sequence[Row],
    base: Row | None,
    single: Mapping[str, Sequence[float]] | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a run is judged by.

    Args:
        tasks: the K tasks in order.
        rows: K rows of K cells; row j is after task j.
        base: the untouched model's cells, None where it was not run.
        single: by task name, the row scores of each task trained alone, for plasticity FWT.
        facts: what the scores belong to: method, lambda, seed, decode, ...
    """
    order = tuple(task.spec.name for task in tasks)
    matrix = AccuracyMatrix(
        order=order,
        matrix=tuple(_scores(row) for row in rows),
        base=_scores(base) if base is not None else None,
        single=tuple(_mean(single.get(name)) for name in order) if single is not None else None,
        only_end=facts.get("method") == "past",
    )
    stages = dict(zip(order, rows, strict=True)) | ({"base": base} if base is not None else {})
    row_scores = {
        stage: {name: list(cell.rows) for name, cell in zip(order, row, strict=True) if cell}
        for stage, row in stages.items()
    }
    if single is not None:
        row_scores["single"] = {name: list(rows) for name, rows in single.items()}
    return {
        "format": FORMAT,
        **matrix.to_json(),
        **facts,
        "test_rows": {task.spec.name: len(task.test) for task in tasks},
        "test_digests": {task.spec.name: task.test_digest for task in tasks},
        "row_scores": row_scores,
    }


_RowScores = TypeAdapter(dict[str, dict[str, list[float]]])


def single_rows(
    run: Path, tasks: Sequence[Task], facts: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Row scores of `tasks`, by name, of a finished `--method single` run: its diagonal.

    Args:
        facts: how `tasks` are scored here; the run must have scored them so too.

    Raises:
        SettingsError: the run is of another method or base, or was scored otherwise.
        StorageError: it has no results yet, or they are none.
    """
    file = RunPaths(run).results
    document = files.read_object(file)
    if document.get("method") != "single":
        raise SettingsError(
            f"{run} is a run of {document.get('method')}, not of single",
            hint="make one with `ella run --method single` on the same order and settings",
        )
    _check_scored_alike(document, facts, run)
    scores = _row_scores(document, file)
    alone = {name: rows[name] for name, rows in scores.items() if name in rows}
    return _of_the_same(alone, tasks, document)


def known_single_rows(
    file: Path, tasks: Sequence[Task], facts: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """The same from results that have them already; None where there are none.

    Raises:
        SettingsError: they were scored otherwise than `tasks` are here.
        StorageError: the file is damaged.
    """
    document = files.read_object(file) if file.is_file() else {}
    alone = _row_scores(document, file).get("single") if document else None
    if alone is None:
        return None
    _check_scored_alike(document, facts, file)
    return _of_the_same(alone, tasks, document)


def _check_scored_alike(document: Mapping[str, Any], facts: Mapping[str, Any], where: Path) -> None:
    for what in ("base_model", "decode", "header", "precision", "tokenizer", "validation"):
        theirs, ours = (_told(one.get(what)) for one in (document, facts))
        if what in document and ours is not None and theirs != ours:
            raise SettingsError(
                f"{where} has {what.replace('_', ' ')} {theirs}, here it is {ours}",
                hint="make the run of single with the same model and the same way to score",
            )


def _row_scores(document: Mapping[str, Any], file: Path) -> dict[str, dict[str, list[float]]]:
    try:
        return _RowScores.validate_python(document.get("row_scores"))
    except ValidationError as error:
        raise StorageError(
            f"{file} has no sound row_scores",
            hint="it was changed by hand; make it again with `ella eval --run`",
        ) from error


def _of_the_same(
    scores: Mapping[str, list[float]], tasks: Sequence[Task], document: Mapping[str, Any]
) -> dict[str, list[float]]:
    """Those of `tasks`, each of the very rows and questions that it is scored on here.

    Args:
        document: the results that the scores are of.
    """
    known = document.get("test_digests")
    digests = known if isinstance(known, Mapping) else {}
    alone = {}
    for task in tasks:
        name = task.spec.name
        rows = scores.get(name)
        if rows is None:
            continue
        if len(rows) != len(task.test):
            raise SettingsError(
                f"{name} was scored alone on {len(rows)} test rows, here on {len(task.test)}",
                hint="make the run of single with the same --limit-test",
            )
        # An older ella did not note what was asked.
        if digests.get(name, task.test_digest) != task.test_digest:
            raise SettingsError(
                f"{name} was scored alone on other test rows, or asked or scored otherwise",
                hint="make the run of single with the same data and task.yaml",
            )
        alone[name] = rows
    return alone


def _told(fact: object) -> object:
    """Of a base model its fingerprint: its name may be a folder here and a hub id there. Digests
    are told by their beginnings.
    """
    if isinstance(fact, str):
        return fact[:12]
    if not isinstance(fact, Mapping):
        return fact
    return str(fact["fingerprint"])[:12] if fact.get("fingerprint") else None


def _mean(rows: Sequence[float] | None) -> float | None:
    return sum(rows) / len(rows) if rows else None


def _scores(row: Row) -> tuple[float | None, ...]:
    return tuple(cell.score if cell else None for cell in row)
