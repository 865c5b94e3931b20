"""A run's folder as inspect needs it: order, finished adapters, and scores where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ella_cli.accuracy import AccuracyMatrix
from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import SUMMED_METHODS
from ella_cli.errors import SettingsError, StorageError
from ella_cli.files import read_json
from ella_cli.manifest import MANIFEST
from ella_cli.past import Past, read_past
from ella_cli.past.record import EnergyKind
from ella_cli.run_paths import RunPaths, stage_name


@dataclass(frozen=True, eq=False)
class RunStages:
    """One run.

    `stages` are what is trained one after the other: the tasks, or "joint". `adapters[j]` is stage
    j's, None where it is not trained; `accuracy` is None where nothing was scored; `scored` has the
    cells that are there, by the stage's folder.
    """

    path: Path
    record: Mapping[str, Any]
    order: tuple[str, ...]
    stages: tuple[str, ...]
    method: str
    adapters: tuple[Adapter | None, ...]
    accuracy: AccuracyMatrix | None
    scored: Mapping[str, frozenset[str]]

    @property
    def is_summed(self) -> bool:
        """Whether each stage's adapter is one term of the sum that the model is."""
        return self.method in SUMMED_METHODS


def read_run_stages(folder: Path) -> RunStages:
    """
    Raises:
        StorageError: no run.json there, or one that names no order.
        AdapterError: a stage's adapter is damaged.
    """
    paths = RunPaths(folder)
    record_path, results_path = paths.record, paths.results
    if not record_path.is_file():
        what = f"{folder} holds no run.json" if folder.is_dir() else f"there is no folder {folder}"
        raise StorageError(what, hint="name a folder that `ella run` made")
    record = read_json(record_path)
    order = record.get("order") if isinstance(record, dict) else None
    if not isinstance(order, list) or not order:
        raise StorageError(f"{record_path} names no order", hint="it was changed by hand")
    method = str(record.get("method", "unknown method"))
    stages = ("joint",) if method == "joint" else tuple(str(task) for task in order)
    folders = [paths.stage(i, stage) for i, stage in enumerate(stages)]
    results = read_json(results_path) if results_path.is_file() else None
    return RunStages(
        path=folder,
        record=record,
        order=tuple(str(task) for task in order),
        stages=stages,
        method=method,
        adapters=tuple(
            read_adapter(one) if (one / MANIFEST).is_file() else None for one in folders
        ),
        accuracy=None if results is None else AccuracyMatrix.from_json(results),
        scored={
            stage.name: frozenset(cell.stem for cell in stage.glob("*.json"))
            for stage in sorted(paths.scores.glob("*/"))
        },
    )


def past_before(folder: Path) -> Past:
    """The sum that a stage's adapter was trained on: the adapters of the run's earlier stages.

    Raises:
        SettingsError: the folder is no stage of a run, its first stage, or of a run that does not
            sum its adapters.
        AdapterError, StorageError: an earlier stage cannot be read.
    """
    folder = folder.resolve()
    run_folder = folder.parent.parent
    paths = RunPaths(run_folder)
    if folder.parent != paths.stages or not paths.record.is_file():
        raise SettingsError(
            f"{folder.name} is no stage of an `ella run`, so its past is not known",
            hint="name the past with --past FILE",
        )
    run = read_run_stages(run_folder)
    names = [stage_name(i, stage) for i, stage in enumerate(run.stages)]
    index = names.index(folder.name) if folder.name in names else 0
    earlier = [adapter for adapter in run.adapters[:index] if adapter is not None]
    if not earlier or len(earlier) < index or not run.is_summed:
        raise SettingsError(
            f"{folder.name} of {run_folder.name} ({run.method}) was not trained on a past",
            hint="name a later stage, or a past with --past FILE",
        )
    # Protected as the run's own past protects.
    kind = read_past(paths.past).record.energy if paths.past.is_file() else EnergyKind()
    return Past.of(earlier, energy=kind.kind, last=kind.last, decay=kind.decay)


def past_of_run(folder: Path, file: Path) -> Past:
    """A run's past with its tasks known apart, if the run still has every adapter in it.

    A dense file, or a compacted one, holds their sum only; else that file is given as it is.

    Raises:
        PastError, AdapterError: the file or a stage is damaged.
    """
    past = read_past(file)
    adapters = summed_adapters(folder, past)
    if len(adapters) < len(past.tasks) or not adapters:
        return past
    kind = past.record.energy
    return Past.of(adapters, energy=kind.kind, last=kind.last, decay=kind.decay)


def summed_adapters(folder: Path, past: Past) -> list[Adapter]:
    """Those of a run's adapters that the past holds as they are, in its order.

    Raises:
        AdapterError: a stage is damaged.
    """
    if not RunPaths(folder).record.is_file():
        return []
    found = [adapter for adapter in read_run_stages(folder).adapters if adapter is not None]
    known = {adapter.digest: adapter for adapter in found}
    return [
        known[task.digest] for task in past.tasks if task.digest in known and task.shrink is None
    ]
