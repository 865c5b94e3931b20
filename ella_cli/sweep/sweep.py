"""A whole sweep: checked, run by one or more workers, and summed up when all runs are settled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ella_cli import files
from ella_cli.config import RunSettings
from ella_cli.errors import EllaError, SettingsError
from ella_cli.progress import SILENCE, Progress
from ella_cli.report import figure, html
from ella_cli.report.document import Document
from ella_cli.sweep.document import sweep_document
from ella_cli.sweep.outcome import (
    Outcome,
    best,
    failures,
    finished_runs,
    outcome_json,
    outcomes,
    rivals,
)
from ella_cli.sweep.points import Point, check_held_out, settings_digest, sweep_name
from ella_cli.sweep.study import (
    claim_study,
    fill_queue,
    open_study,
    release_dead,
    settled,
    sqlite_url,
)
from ella_cli.sweep.worker import Job, work

if TYPE_CHECKING:
    from optuna import Study

FORMAT = 1
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Sweep:
    """A finished sweep; `document` is what is shown, `json` what sweep.json holds."""

    document: Document
    json: dict[str, Any]
    outcomes: tuple[Outcome, ...]


def run_sweep(
    base: RunSettings,
    points: Sequence[Point],
    folder: Path,
    *,
    storage: str | None = None,
    study_name: str | None = None,
    processes: int = 1,
    command: str = "",
    progress: Progress = SILENCE,
) -> Sweep:
    """Runs what is not there yet, waits for the rest, and writes sweep.json, .svg, .png, .html.

    Args:
        base: settings of every run but for λ and seed; must hold out validation rows.
        points: the runs.
        folder: gets a run's folder for each point this machine works on, and the summary.
        storage: an RDB URL as Optuna takes it; by default a SQLite file in `folder`.
        study_name: of the study in it; by default made from the settings, so that the same
            sweep on several machines is one.
        processes: workers at the same time on this machine.

    Raises:
        SettingsError: no validation rows, or the folder belongs to another sweep.
        StorageError: the storage cannot be used.
        EllaError: data or model cannot be used, or runs were left unfinished by dead workers.
    """
    check_held_out(base)
    url = storage or sqlite_url(folder / "study.db")
    _check_tasks(base, points, progress)
    name = study_name or sweep_name(base)
    settings = settings_digest(base)
    _claim(folder, name, settings)
    study = open_study(url, name)
    claim_study(study, settings)
    release_dead(study, folder)
    fill_queue(study, points, folder, failed_too=True)
    job = Job(base, tuple(points), folder, url, name, command)
    if processes == 1:
        work(job, progress)
    else:
        _work_together(job, processes, study, progress)
    _check_finished(study, points)
    return _summed_up(study, points, folder, name, progress)


def _claim(folder: Path, name: str, settings: str) -> None:
    """Notes whose folder it is, or finds that it is this sweep's.

    A sweep none of whose runs has begun, as with a model that is not there, leaves its place.
    """
    record = folder / "study.json"
    ours = {"study": name, "settings": settings}
    begun = record.is_file() and any((folder / "trials").glob("*/run.json"))
    if not begun:
        files.write_json(record, {"format": FORMAT, **ours})
        return
    theirs = files.read_object(record)
    if theirs.get("study") != name or theirs.get("settings", settings) != settings:
        raise SettingsError(
            f"{folder} holds the sweep {theirs.get('study')} of other settings",
            hint="give another --output-dir; only λ, seeds and the device may differ",
        )


def _check_tasks(base: RunSettings, points: Sequence[Point], progress: Progress) -> None:
    """Data that no run could use should stop the sweep, not fail every run of it."""
    from ella_cli.sequence import load_tasks
    from ella_cli.tasks import resolve_order

    load_tasks(resolve_order(base.order), points[0].settings(base), progress)


def _work_together(job: Job, count: int, study: Study, progress: Progress) -> None:
    """Workers in processes of their own; they end when this one is interrupted or killed."""
    context = multiprocessing.get_context("spawn")
    threads = None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // count)
    workers: list[BaseProcess] = []
    with _leaving_when_ended():
        try:
            for index in range(count):
                own = replace(job, base=_on_device(job.base, index), threads=threads)
                workers.append(context.Process(target=_work_quietly, args=(own,)))
                workers[-1].start()
            _watch(workers, job, study, progress)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()


@contextmanager
def _leaving_when_ended() -> Iterator[None]:
    """SIGTERM raises SystemExit, as Ctrl-C raises KeyboardInterrupt, so that `finally` is run."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what a signal does.
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(workers: Sequence[BaseProcess], job: Job, study: Study, progress: Progress) -> None:
    advance = progress.begin(f"sweep with {len(workers)} workers", len(job.points))
    seen = 0
    while True:
        alive = [worker.sentinel for worker in workers if worker.is_alive()]
        now = len(settled(study, job.points))
        if now > seen:
            advance(now - seen, f"{now} of {len(job.points)} runs")
            seen = now
        if not alive:
            return
        # Runs that settle are seen in the study; that a worker has ended is told at once.
        wait(alive, timeout=_LOOK_SECONDS)


def _work_quietly(job: Job) -> None:
    if not sys.warnoptions:
        # As the command's own process does: what libraries say to each other.
        warnings.simplefilter("ignore", FutureWarning)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(job)
    except KeyboardInterrupt:
        # The parent says what there is to say.
        raise SystemExit(130) from None


def _end_with_parent() -> None:
    """Killed outright, a parent ends no worker: they end themselves, as if it had ended them."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _on_device(base: RunSettings, index: int) -> RunSettings:
    """Workers take turns on the GPUs, where there are several and none was named."""
    import torch

    gpus = torch.cuda.device_count() if base.device in ("auto", "cuda") else 0
    return base.model_copy(update={"device": f"cuda:{index % gpus}"}) if gpus > 1 else base


def _check_finished(study: Study, points: Sequence[Point]) -> None:
    left = len(points) - len(settled(study, points))
    if left:
        raise EllaError(
            f"{left} of {len(points)} runs are not finished: their workers ended early",
            hint="the same command goes on with them",
        )


def _summed_up(
    study: Study, points: Sequence[Point], folder: Path, name: str, progress: Progress
) -> Sweep:
    runs = finished_runs(study, points)
    failed = failures(study, points)
    if not runs:
        raise EllaError(
            f"every run failed, the first because {next(iter(failed.values()))}",
            hint="try one of them with `ella run`",
        )
    grounds = {run.fingerprint for run in runs}
    if len(grounds) > 1:
        progress.warn(f"these runs stand on {len(grounds)} different base models")
    precisions = sorted({run.precision for run in runs if run.precision})
    if len(precisions) > 1:
        progress.warn(f"these runs computed in {' and '.join(precisions)}; give --dtype to all")
    found = outcomes(runs, failed, points)
    winner = best(found)
    assert winner is not None
    document = sweep_document(f"sweep {name}", found)
    summary = {
        "format": FORMAT,
        "study": name,
        "best": winner.lam,
        "not_told_apart": rivals(found, winner),
        "outcomes": [outcome_json(one) for one in found],
        "runs": [
            {
                "lambda": run.point.lam,
                "lambda_used": list(run.used),
                "seed": run.point.seed,
                "folder": run.folder,
                **run.figures,
            }
            for run in runs
        ],
    }
    files.write_json(folder / "sweep.json", summary)
    figure.write(document, folder / "sweep.svg")
    figure.write(document, folder / "sweep.png")
    html.write(document, folder / "sweep.html")
    return Sweep(document, summary, tuple(found))
