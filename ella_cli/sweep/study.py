"""The study that workers share: which runs are waiting, running and done, and whose are dead.

A run is one trial. Trials are put into the queue once and taken out by Optuna, which hands each
to one worker. Two workers that fill the queue at the same moment may put a run in twice; the later
trial then steps back. A worker that is gone is noticed by its heartbeat, or, on this machine, at
once by the lock on its run's folder, which dies with it, unless the machine was started anew since;
its run goes back into the queue.
"""

from __future__ import annotations

import re
import socket
import time
import uuid
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ella_cli.errors import SettingsError, StorageError
from ella_cli.sweep.points import Point

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

POINT, HOST, FOLDER, ERROR, RESULT = "point", "host", "folder", "error", "result"
SETTINGS = "settings"  # of the study; the others are of a trial

# Seconds between signs of life, and after how long without one a worker counts as dead.
HEARTBEAT = 30
GRACE = 120
# How long a process waits for its turn to write the SQLite file.
_SQLITE_PATIENCE = 60
# What may hold a password in a URL's query: sslpassword, passwd, a whole ODBC connection.
_SECRET = re.compile("pass|pwd|secret|token|odbc", re.IGNORECASE)
# How often a study is asked for, and the seconds between, before its storage counts as unusable.
_ATTEMPTS = 4
_PAUSE = 0.5


def open_study(storage: str, name: str) -> Study:
    """The study of that name, made if it is not there.

    Raises:
        StorageError: the storage cannot be reached or its driver is not installed.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    # It would log the traceback of a run that failed; what there is to say is ours.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    broken = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _study(storage, name)
        except (*broken, ImportError, ValueError) as error:
            # A port that is no number is a plain ValueError to SQLAlchemy.
            # Two machines that start at once both make the tables, and one of them is told that
            # they are there.
            if attempt < _ATTEMPTS and isinstance(error, broken):
                time.sleep(attempt * _PAUSE)
                continue
            raise StorageError(
                f"cannot use the storage {without_password(storage)}: {_first_line(error)}",
                hint="give a URL as SQLAlchemy takes it, such as sqlite:///sweep.db or "
                "postgresql://user@host/name, and install its driver",
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _study(storage: str, name: str) -> Study:
    import optuna

    sqlite = storage.startswith("sqlite")
    options = {"connect_args": {"timeout": _SQLITE_PATIENCE}} if sqlite else {}
    with warnings.catch_warnings():
        # Heartbeats are marked experimental since 2021.
        warnings.simplefilter("ignore")
        kept = optuna.storages.RDBStorage(
            storage, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE
        )
    # The queue decides what is run; the sampler is never asked.
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(
        storage=kept, study_name=name, sampler=sampler, direction="maximize", load_if_exists=True
    )


def sqlite_url(file: Path) -> str:
    """
    Raises:
        StorageError: the path is not UTF-8, as a URL is.
    """
    from sqlalchemy.engine import URL

    try:
        # A `?`, `#` or `%` of the path is none of the URL's.
        url = URL.create("sqlite", database=str(file.resolve()))
        return url.render_as_string(hide_password=False)
    except UnicodeEncodeError as error:
        raise StorageError(
            f"a sweep cannot be kept in {file}, whose path is not UTF-8",
            hint="give another --output-dir, or the URL of a database with --storage",
        ) from error


def claim_study(study: Study, settings: str) -> None:
    """Notes whose study it is, if none of its runs has been made or begun; then `check_same`."""
    begun = any(
        trial.state.name in ("COMPLETE", "RUNNING") for trial in study.get_trials(deepcopy=False)
    )
    if SETTINGS not in study.user_attrs or not begun:
        study.set_user_attr(SETTINGS, settings)
    check_same(study, settings)


def check_same(study: Study, settings: str) -> None:
    """Makes sure that everyone who shares the study sweeps the same.

    Args:
        settings: `settings_digest` of this sweep's.

    Raises:
        SettingsError: the study is of another sweep, which may have taken it just now.
    """
    if study.user_attrs.get(SETTINGS, settings) != settings:
        raise SettingsError(
            f"the study {study.study_name} is of a sweep with other settings",
            hint="give another --study; only λ, seeds, the device and where model and data lie may "
            "differ",
        )


def fill_queue(
    study: Study, points: Sequence[Point], folder: Path, *, failed_too: bool = False
) -> None:
    """Puts every run into the queue that is neither there, nor running, nor done.

    A run that failed for a reason of its own is not tried again, unless `failed_too`; nor is one
    that a worker of this machine is still at, though it has long given no sign of life.
    """
    from optuna.trial import TrialState

    settled = {TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE}
    known = {
        trial.user_attrs.get(POINT)
        for trial in study.get_trials(deepcopy=False)
        if trial.state in settled or (ERROR in trial.user_attrs and not failed_too)
    }
    for point in points:
        if point.name not in known and not is_busy(folder, point):
            study.enqueue_trial(_params(point), user_attrs={POINT: point.name})


def trials_of(study: Study, points: Sequence[Point], *states: str) -> list[FrozenTrial]:
    """The study's trials of these runs, in one of the states (`WAITING`, `RUNNING`, ...)."""
    names = {point.name for point in points}
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(POINT) in names and trial.state.name in states
    ]


def settled(study: Study, points: Sequence[Point]) -> set[str]:
    """Names of the runs that are done, or failed for a reason of their own."""
    done = trials_of(study, points, "COMPLETE")
    failed = [trial for trial in trials_of(study, points, "FAIL") if ERROR in trial.user_attrs]
    return {trial.user_attrs[POINT] for trial in (*done, *failed)}


def release_dead(study: Study, folder: Path) -> None:
    """Takes runs from workers that are no more, so that `fill_queue` puts them back."""
    import optuna
    from optuna.trial import TrialState

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(trial, folder):
            # Another worker may have noticed first.
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def take(trial: Trial, points: Sequence[Point], folder: Path) -> tuple[Point, FileLock] | None:
    """The run of a trial and the lock on its folder; None if the trial is one too many."""
    name = trial.user_attrs.get(POINT)
    point = next((point for point in points if point.name == name), None)
    if point is None:
        return None
    lock = run_lock(folder, point)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    trial.set_user_attr(HOST, _machine())
    trial.set_user_attr(FOLDER, str(folder.resolve()))
    if _is_one_too_many(trial, point):
        lock.release()
        return None
    if point.number is None:
        trial.suggest_categorical("lambda rule", [point.lam])
    else:
        trial.suggest_float("lambda", 0.0, 1e300)
    trial.suggest_int("seed", 0, 2**31)
    return point, lock


def run_folder(folder: Path, point: Point) -> Path:
    return folder / "trials" / point.name


def run_lock(folder: Path, point: Point) -> FileLock:
    """Held while the run is at work; the system lets go of it when the process ends."""
    path = _lock_path(folder, point.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def _lock_path(folder: Path, name: str) -> Path:
    return folder / "trials" / f".{name}.lock"


def is_busy(folder: Path, point: Point) -> bool:
    """Whether a process of this machine is at the run."""
    try:
        with run_lock(folder, point).acquire(timeout=0):
            return False
    except Timeout:
        return True


def is_finished(trial: Trial) -> bool:
    """Whether it has ended for the study: of one under way, that it was taken away."""
    trials = trial.study.get_trials(deepcopy=False)
    return bool(trials[trial.number].state.is_finished())


def _params(point: Point) -> dict[str, Any]:
    lam = {"lambda rule": point.lam} if point.number is None else {"lambda": point.number}
    return {**lam, "seed": point.seed}


def _is_one_too_many(trial: Trial, point: Point) -> bool:
    """Whether the run is done already, or an earlier trial is at it."""
    return any(
        other.state.name == "COMPLETE"
        or (other.state.name == "RUNNING" and other.number < trial.number)
        for other in trials_of(trial.study, [point], "COMPLETE", "RUNNING")
    )


def _is_dead(trial: FrozenTrial, folder: Path) -> bool:
    if HOST not in trial.user_attrs:
        # Killed between taking the trial and saying so; no heartbeat may ever have been sent.
        started = trial.datetime_start
        age = datetime.now() - started if started else timedelta()
        return age > timedelta(seconds=GRACE)
    here = (_machine(), str(folder.resolve()))
    if (trial.user_attrs[HOST], trial.user_attrs.get(FOLDER)) != here:
        return False
    lock = FileLock(_lock_path(folder, trial.user_attrs[POINT]))
    try:
        with lock.acquire(timeout=0):
            return True
    except Timeout:
        return False


def _machine() -> str:
    """This machine and no other: containers of two may share name and paths, no boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    mark = boot.read_text().strip() if boot.is_file() else f"{uuid.getnode():x}"
    return f"{socket.gethostname()} {mark}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def without_password(url: str) -> str:
    """The URL as it may be shown: no password, nor what drivers take one as behind the `?`."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        whole = make_url(url)
    except (ArgumentError, ValueError):
        # Where in it a password stands cannot be told.
        scheme, found, _ = url.partition("://")
        return f"{scheme}://…" if found else url
    secret = [name for name in whole.query if _SECRET.search(name)]
    return whole.difference_update_query(secret).render_as_string(hide_password=True)
