"""A finished run as values: what `ella run` wrote into its folder, read back.

`results.json` gives the accuracy matrix and the rows behind it, `run.json` the settings, the
`ella.json` beside each stage's adapter how that stage was trained. No tensors are read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ella_cli.accuracy import AccuracyMatrix
from ella_cli.config import RHO_OF_COORDINATES
from ella_cli.errors import StorageError
from ella_cli.files import read_json
from ella_cli.manifest import MANIFEST, read_manifest
from ella_cli.names import nameable
from ella_cli.run_paths import RESULTS, RunPaths, stage_name
from ella_cli.wording import plain


@dataclass(frozen=True)
class Curves:
    """What was logged during one stage; all as long as `step`. CE and penalties in nats."""

    step: tuple[float, ...] = ()
    ce: tuple[float | None, ...] = ()
    penalty: tuple[float | None, ...] = ()
    weighted_penalty: tuple[float | None, ...] = ()
    update_norm: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One task's training, from the manifest beside its adapter."""

    folder: Path
    task: str
    lam: float | None
    rank: int | None
    scale: float | None
    train_rows: int | None
    update_norm: float | None
    update_norms: Mapping[str, float]
    past_tasks: tuple[str, ...]
    seconds: float | None
    curves: Curves
    manifest: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class RunResults:
    """One run.

    `scores[stage][task]` holds one value in [0, 1] a test row, with `stage` the task's name in the
    order, "base" for the untouched model or "single" for the task trained alone.
    """

    path: Path
    name: str
    accuracy: AccuracyMatrix
    method: str
    lam: float | None
    seed: int | None
    decode: str
    test_rows: Mapping[str, int]
    scores: Mapping[str, Mapping[str, tuple[float, ...]]]
    stages: tuple[Stage, ...]
    settings: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """Its results.json, or the file that was kept alone."""
        return self.path if self.path.is_file() else self.path / RESULTS

    @property
    def kind(self) -> str:
        """The method with its energy and what weighs it, whatever λ was."""
        energy = self.document.get("energy")
        name = self.method if energy in (None, "sum") else f"{self.method} {energy}"
        for part in ("last", "decay"):
            if self.document.get(part) is not None:
                name += f" {part} {self.document[part]:g}"
        return name

    @property
    def rule(self) -> str:
        """Of a λ that was found: what was asked for."""
        rho = _number(self.document.get("rho"))
        return "λ=auto" + (f" ρ={rho:g}" if rho not in (None, RHO_OF_COORDINATES) else "")

    @property
    def label(self) -> str:
        """The method with its energy and λ, as a heading or a legend names it."""
        name, asked = self.kind, self.document.get("lambda")
        if isinstance(asked, list):
            each = (f"{one:g}" if isinstance(one, int | float) else str(one) for one in asked)
            return f"{name} λ={','.join(each)}"
        if asked == "auto":
            # The first task meets no past, so it has no λ of its own.
            used = set(_numbers(self.document.get("lambdas"))[1:])
            return f"{name} λ={used.pop():g} (auto)" if len(used) == 1 else f"{name} {self.rule}"
        if self.lam is None or self.lam == 0:
            return name
        return f"{name} λ={self.lam:g}"


def read_run(folder: Path) -> RunResults:
    """The run in `folder`, or in the folder of the results.json that was named.

    A results file under another name was kept alone: there are no stages to it.

    Raises:
        StorageError: no results.json there, or one that this version cannot read.
    """
    folder = folder.parent if folder.name == RESULTS else folder
    path = folder if folder.is_file() else folder / RESULTS
    if not path.is_file():
        raise StorageError(
            f"{folder} holds no {RESULTS}" if folder.is_dir() else f"there is no folder {folder}",
            hint="name the folder of a finished `ella run`; the same command finishes one",
        )
    document = read_json(path)
    if not isinstance(document, dict):
        raise StorageError(f"{path} is not a run's results", hint="run `ella evaluate` again")
    _check_facts(document, path)
    record = RunPaths(folder).record
    settings = read_json(record) if record.is_file() else {}
    accuracy = _accuracy(document, path)
    return RunResults(
        path=folder,
        name=nameable(folder.resolve().name.removesuffix(".json")),
        accuracy=accuracy,
        method=str(document.get("method", "unknown method")),
        lam=_number(document.get("lambda")),
        seed=document.get("seed"),
        decode=_decode_words(document.get("decode")),
        test_rows=dict(_mapping(document.get("test_rows"))),
        scores=_scores(document.get("row_scores") or {}, accuracy.order, path),
        stages=read_stages(folder),
        settings=_mapping(settings),
        document=document,
    )


def read_stages(folder: Path) -> tuple[Stage, ...]:
    """The stages whose manifest is there, in their order."""
    found = sorted(RunPaths(folder).stages.glob(f"*/{MANIFEST}"))
    # A hidden folder is one that is not whole yet.
    stages = [_stage(path) for path in found if not path.parent.name.startswith(".")]
    # By number, not by name: "100-..." is not between 10 and 11.
    return tuple(sorted(stages, key=lambda stage: int(stage.manifest.get("order_index", 0))))


def _stage(path: Path) -> Stage:
    manifest = read_manifest(path.parent)
    assert manifest is not None
    return Stage(
        folder=path.parent,
        task=str(manifest.get("task", path.parent.name)),
        lam=_number(manifest.get("lambda")),
        rank=manifest.get("rank"),
        scale=_number(manifest.get("scale")),
        train_rows=_mapping(manifest.get("data")).get("train_rows"),
        update_norm=_number(manifest.get("update_norm")),
        update_norms=dict(_mapping(manifest.get("update_norms"))),
        past_tasks=tuple(_mapping(manifest.get("past")).get("tasks") or ()),
        seconds=_number(manifest.get("seconds")),
        curves=_curves(_mapping(manifest.get("curves"))),
        manifest=manifest,
    )


def _curves(document: Mapping[str, Sequence[float | None]]) -> Curves:
    step = tuple(_numbers(document.get("step")))

    def curve(name: str) -> tuple[float | None, ...]:
        # A curve that was not logged is all gaps, so that every curve pairs with its steps.
        values = tuple(document.get(name) or ())[: len(step)]
        return values + (None,) * (len(step) - len(values))

    return Curves(
        step, curve("ce"), curve("penalty"), curve("weighted_penalty"), curve("update_norm")
    )


def _accuracy(document: Mapping[str, Any], path: Path) -> AccuracyMatrix:
    try:
        return AccuracyMatrix.from_json(document)
    except StorageError as error:
        raise StorageError(f"{path}: {error.message}", hint=error.hint) from error


class _Facts(BaseModel):
    """What is relied on of a run's results beside its scores, and of which type."""

    model_config = ConfigDict(strict=True)

    last: int | None = None
    decay: float | None = None
    rho: float | None = None
    seed: int | None = None
    test_rows: dict[str, int] | None = None
    validation: int | None = None
    header: bool | None = None


def _check_facts(document: Mapping[str, Any], path: Path) -> None:
    try:
        _Facts.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(
            f"{path}: {where} is {str(first['input'])[:60]!r}; it {plain(first)}",
            hint="the file was changed by hand; score the run again",
        ) from error


_RowScore = Annotated[float, Field(ge=0, le=1)]
_ROW_SCORES = TypeAdapter(dict[str, dict[str, tuple[_RowScore, ...]]])


def _scores(
    document: object, order: tuple[str, ...], path: Path
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Stages keyed by task; a stage's folder name `01-dbpedia` is taken as well as `dbpedia`."""
    try:
        found = _ROW_SCORES.validate_python(document)
    except ValidationError as error:
        raise StorageError(
            f"{path}: row_scores are not lists of numbers from 0 to 1 by stage and task",
            hint="the file was changed by hand; score the run again",
        ) from error
    names = {stage_name(index, task): task for index, task in enumerate(order)}
    return {
        names.get(stage, stage): {task: rows for task, rows in tasks.items() if rows}
        for stage, tasks in found.items()
    }


def _decode_words(decode: object) -> str:
    if decode is None:
        return "not recorded"
    if isinstance(decode, Mapping):
        return ", ".join(f"{key} {value}" for key, value in decode.items())
    return str(decode)


def _mapping(value: object) -> Mapping[str, Any]:
    """What should be a JSON object, or an empty one: a part that is missing is only not shown."""
    return value if isinstance(value, dict) else {}


def _numbers(value: object) -> list[float]:
    found = value if isinstance(value, list) else []
    return [number for one in found if (number := _number(one)) is not None]


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return float(value)
