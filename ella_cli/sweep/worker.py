"""Takes one run after another out of the study, until none is left to take."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ella_cli.config import RunSettings
from ella_cli.errors import EllaError, SettingsError
from ella_cli.progress import SILENCE, Progress
from ella_cli.report.results import read_stages
from ella_cli.sweep.outcome import FIGURES
from ella_cli.sweep.points import Point, settings_digest
from ella_cli.sweep.study import (
    ERROR,
    RESULT,
    check_same,
    fill_queue,
    is_finished,
    open_study,
    release_dead,
    run_folder,
    settled,
    take,
    trials_of,
)

if TYPE_CHECKING:
    from optuna import Study, Trial

# Seconds between looks at the runs of others, which may yet be left behind.
_PATIENCE = 2.0
# What the study keeps of a run's results, so that every machine can sum up.
_KEPT = (*FIGURES, "base_model", "precision")


@dataclass(frozen=True)
class Job:
    """All that a worker must know; it can be sent to another process."""

    base: RunSettings
    points: tuple[Point, ...]
    folder: Path
    storage: str
    study: str
    command: str = ""
    threads: int | None = None


def work(job: Job, progress: Progress = SILENCE) -> None:
    """Runs what is waiting; returns when every run is done or failed."""
    if job.threads is not None:
        import torch

        torch.set_num_threads(job.threads)
    study = open_study(job.storage, job.study)
    settings = settings_digest(job.base)
    while True:
        check_same(study, settings)
        release_dead(study, job.folder)
        fill_queue(study, job.points, job.folder)
        if trials_of(study, job.points, "WAITING"):
            _next(study, job, progress)
        elif len(settled(study, job.points)) < len(job.points) or trials_of(
            study, job.points, "RUNNING"
        ):
            # Others are at them, perhaps once more; should one die, its run is ours to go on with.
            time.sleep(_PATIENCE)
        else:
            return


def _next(study: Study, job: Job, progress: Progress) -> None:
    """One trial; what becomes of it is in the study."""
    from optuna import TrialPruned

    taken_away, raised = False, None

    def objective(trial: Trial) -> float:
        nonlocal taken_away, raised
        try:
            return _run(trial, job, progress)
        except BaseException as error:
            raised = error
            raise
        finally:
            taken_away = is_finished(trial)

    try:
        study.optimize(objective, n_trials=1, catch=(EllaError,))
    except ValueError:
        # This process slept so long that others took it for dead: its trial takes no more words.
        # What it has done lies in the run's folder, where the run's next trial finds it.
        if not taken_away:
            raise
        if raised is not None and not isinstance(raised, TrialPruned | EllaError):
            raise raised from None


def _run(trial: Trial, job: Job, progress: Progress) -> float:
    """Objective of one trial: OA on held-out rows."""
    from optuna import TrialPruned

    taken = take(trial, job.points, job.folder)
    if taken is None:
        raise TrialPruned("another trial has this run")
    point, lock = taken
    try:
        progress.note(f"λ = {point.lam}, seed {point.seed}")
        trial.set_user_attr("process", os.getpid())
        try:
            results = _order(job, point, progress)
            if is_finished(trial):
                raise TrialPruned("it was taken away meanwhile")
        except EllaError as error:
            # Its own fault, as a λ so large that the loss overflows: no reason to stop the others.
            if not is_finished(trial):
                trial.set_user_attr(ERROR, error.message)
            raise
        kept = {name: results.get(name) for name in _KEPT}
        # A rule gives each task a λ of its own.
        stages = read_stages(run_folder(job.folder, point))
        trial.set_user_attr(RESULT, kept | {"lambdas": [stage.lam for stage in stages]})
    finally:
        lock.release()
    return _score(results)


def _order(job: Job, point: Point, progress: Progress) -> dict[str, Any]:
    from ella_cli.sequence import has_first_stage, run_order

    folder = run_folder(job.folder, point)
    run = partial(
        run_order, point.settings(job.base), folder, command=job.command, progress=progress
    )
    first_stage = _first_stage(job, point)
    try:
        return run(first_stage=first_stage)
    except SettingsError as error:
        if first_stage is None or has_first_stage(folder):
            raise
        # Another machine's, in another precision: it saves time where it fits, and no more.
        progress.note(f"the first stage is trained here: {error.message}")
    # The error holds the model that was loaded for nothing; here it is gone.
    return run()


def _first_stage(job: Job, point: Point) -> Path | None:
    """A run of the same seed that has learned the first task, which λ does not touch."""
    from ella_cli.sequence import has_first_stage

    others = (run_folder(job.folder, one) for one in job.points if one.seed == point.seed)
    return next((folder for folder in others if has_first_stage(folder)), None)


def _score(results: dict[str, Any]) -> float:
    assert isinstance(results["oa"], float), "every task is scored after the last"
    return results["oa"]
