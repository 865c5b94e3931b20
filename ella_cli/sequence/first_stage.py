"""The first stage taken from another run: no past touches it, so all methods begin alike."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ella_cli import files, processes
from ella_cli.adapter import Adapter
from ella_cli.adapter.curvature_file import CURVATURE, read_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.config import FREE, CurvatureFields, RunSettings
from ella_cli.errors import SettingsError
from ella_cli.manifest import MANIFEST
from ella_cli.progress import SILENCE, Progress
from ella_cli.run_paths import stage_name
from ella_cli.sequence.run_folder import RunFolder
from ella_cli.training.methods import METHODS

# They decide what comes after the first task, or only how it is scored.
_LATER = {
    "method", "lambda", "rho", "energy", "last", "decay", "order", "decode", "replay_share",
}  # fmt: skip
# Where model and rows came from and how many rows: the fingerprints tell what they were.
_TOLD = {"model", "data", "limit", "limit_test", "validation"}


def check_has_first(settings: RunSettings) -> None:
    """
    Raises:
        SettingsError: nothing comes first in this method.
    """
    if METHODS[settings.method].joint:
        raise SettingsError("--method joint has one stage, of all tasks", hint="drop --first-stage")


def check_first_stage(
    other: Path, task: str, record: Mapping[str, Any], settings: RunSettings
) -> None:
    """
    Args:
        other: a run whose first stage is to be taken.
        task: the first task here.
        record: what this run's run.json holds, or will.

    Raises:
        SettingsError: the other run's first stage is not finished, or would not be the same.
        StorageError: it cannot be read.
    """
    check_has_first(settings)
    measures = METHODS[settings.method].measures(settings.curvature_rows)
    source = RunFolder(other)
    stage = source.adapter(0, task)
    if stage is None:
        raise SettingsError(
            f"{other} has no finished first stage {stage_name(0, task)}",
            hint="name the folder of a run that begins with the same task",
        )
    theirs, ours = (_deciding(one, task) for one in (source.read(), record))
    if not measures:
        # A stage with its curvature merely has more than is asked for.
        for one in (theirs, ours):
            for field in CurvatureFields.model_fields:
                one.pop(field, None)
    # An older ella did not note these.
    for fact in ("task_digest", "tokenizer"):
        if None in (theirs[fact], ours[fact]):
            del theirs[fact], ours[fact]
    # What is scored is no matter of a stage.
    known = None not in (theirs["train_digest"], ours["train_digest"])
    for one in (theirs, ours):
        del one["data_fingerprint" if known else "train_digest"]
    asked = None in (theirs["precision"], ours["precision"])
    for one in (theirs, ours):
        # What the weights were, not how that was asked for, where it is known.
        del one["precision" if asked else "dtype"]
    for what in sorted(theirs.keys() | ours.keys()):
        if theirs.get(what) != ours.get(what):
            raise SettingsError(
                f"the first stage of {other} is another one: its {what.replace('_', '-')} is "
                f"{theirs.get(what)}, here {ours.get(what)}",
                hint="leave --first-stage out to train it here",
            )
    if measures:
        _check_curvature(stage, other)


def take_first_stage(
    run: RunFolder, other: Path, task: str, settings: RunSettings, progress: Progress = SILENCE
) -> None:
    """Copies the other run's first stage and what was scored with it, unless `run` has its own.

    Args:
        other: has passed `check_first_stage`.
        task: the first task of `run`.

    Raises:
        StorageError: it cannot be read, or ours not written.
    """
    measures = METHODS[settings.method].measures(settings.curvature_rows)
    name = stage_name(0, task)
    with processes.main_first():
        if run.adapter(0, task) is not None:
            return
        progress.note(f"{name} taken from {other}")
        # Scores go first: once the stage is there, they are not looked for again.
        for part in ("scores/base", f"scores/{name}", f"stages/{name}"):
            if (other / part).is_dir() and not (run.path / part).exists():
                with files.new_folder(run.path / part) as folder:
                    # Hidden files are another process's, not yet whole; and what this run would
                    # not have measured must not decide what it protects.
                    left = shutil.ignore_patterns(".*", *([] if measures else [CURVATURE]))
                    shutil.copytree(other / part, folder, ignore=left, dirs_exist_ok=True)


def has_first_stage(run: Path) -> bool:
    return any(run.glob(f"stages/01-*/{MANIFEST}"))


def _check_curvature(stage: Adapter, other: Path) -> None:
    """
    Raises:
        SettingsError: it has none, or another than the one its training ended with.
    """
    found = read_curvature(stage)
    if found is None:
        raise SettingsError(
            f"the first stage of {other} has no curvature, which this run protects by or keeps",
            hint="leave --first-stage out, or give --curvature-rows 0",
        )
    trained = (stage.manifest or {}).get("curvature")
    if isinstance(trained, dict) and not _is_of(trained, found.record):
        raise SettingsError(
            f"the first stage of {other} was measured anew since it was trained",
            hint="leave --first-stage out to train it here",
        )


def _is_of(trained: Mapping[str, Any], now: CurvatureRecord) -> bool:
    """Whether a manifest's facts are of this curvature."""
    if trained.get("measured"):
        return bool(trained["measured"] == now.digest)
    # What an older ella measured counts in full, and has no contrast.
    then = (trained.get("importance", 1.0), trained.get("contrast"))
    rows = (trained.get("rows"), trained.get("tokens"))
    return rows == (now.rows, now.tokens) and then == (now.importance, now.contrast)


def _deciding(record: Mapping[str, Any], task: str) -> dict[str, Any]:
    """All of a run's record that its first stage depends on."""
    # What an older ella measured counts in full; it named no optimizer, and had AdamW.
    settings = {"importance": 1.0, "optim": "adamw", **record["settings"]}
    kept = {name: settings[name] for name in settings.keys() - _LATER - _TOLD - FREE}
    # Weighs the first adapter too, but in one method only.
    if settings.get("method") != "olora":
        kept["olora_l2"] = 0.0
    # The same without a past.
    if settings.get("optim") == "adamw-past":
        kept["optim"] = "adamw"
    return {
        **kept,
        "base": record["base"].get("fingerprint"),
        "data_fingerprint": record["data_fingerprints"].get(task),
        "train_digest": (record.get("train_digests") or {}).get(task),
        "task_digest": (record.get("task_digests") or {}).get(task),
        "precision": record.get("precision"),
        "tokenizer": record.get("tokenizer"),
        "processes": record.get("processes", 1),
    }
