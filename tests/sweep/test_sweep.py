"""Real sweeps: every run once, whoever does it, whenever it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ella_cli.config import RunSettings
from ella_cli.errors import EllaError, SettingsError, StorageError
from ella_cli.sweep import Point, points_of, run_sweep
from ella_cli.sweep.points import sweep_name
from ella_cli.sweep.study import fill_queue, open_study, release_dead, trials_of

Small = Callable[..., RunSettings]
# A test that takes one trial by hand sends no heartbeats.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


def _states(folder: Path, settings: RunSettings, lambdas: str, seeds: int) -> dict[str, int]:
    study = open_study(f"sqlite:///{folder / 'study.db'}", sweep_name(settings))
    points = points_of(lambdas, seeds, settings)
    states = ("COMPLETE", "RUNNING", "WAITING", "FAIL")
    return {state: len(trials_of(study, points, state)) for state in states}


def _written(folder: Path) -> dict[str, int]:
    names = ("results.json", "adapter_model.safetensors")
    files = [path for name in names for path in (folder / "trials").rglob(name)]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def _command(folder: Path, settings: RunSettings, *flags: str) -> list[str]:
    config = folder.parent / f"{folder.name}.yaml"
    document = settings.model_dump(mode="json", by_alias=True)
    config.write_text(yaml.safe_dump(document))
    own = ["sweep", "--config", str(config), "-o", str(folder), "--json"]
    return [sys.executable, "-m", "ella_cli", *own, *flags]


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_sweep_ends_in_a_table_and_a_plot_and_is_not_run_twice(
    small: Small, tmp_path: Path
) -> None:
    settings = small()
    points = points_of("0,1e3", 2, settings)
    done = run_sweep(settings, points, tmp_path / "s")
    assert [one["lambda"] for one in done.json["outcomes"]] == ["0", "1000"]
    assert all(len(one["seeds"]) == 2 for one in done.json["outcomes"])
    first: dict[int, set[str]] = {0: set(), 1: set()}
    for run in done.json["runs"]:
        results = json.loads((_trial(run) / "results.json").read_text())
        assert (results["oa"], results["bwt"]) == (run["oa"], run["bwt"])
        assert results["validation"] == 8
        # A first task is trained alike, whatever λ is.
        assert run["lambda_used"] == [0.0, float(run["lambda"])]
        first[run["seed"]].add((_trial(run) / "stages/01-demo-topic/ella.json").read_text())
    assert [len(manifests) for manifests in first.values()] == [1, 1]
    for name in ("sweep.json", "sweep.svg", "sweep.png", "sweep.html"):
        assert (tmp_path / "s" / name).is_file()
    written = _written(tmp_path / "s")
    assert run_sweep(settings, points, tmp_path / "s").json == done.json
    assert _written(tmp_path / "s") == written
    # One more λ adds its runs and leaves the others as they are.
    more = run_sweep(settings, points_of("0,1e3,auto", 2, settings), tmp_path / "s")
    assert len(more.json["runs"]) == 6
    assert [one["lambda"] for one in more.json["outcomes"]] == ["0", "1000", "auto"]
    by_rule = [run["lambda_used"] for run in more.json["runs"] if run["lambda"] == "auto"]
    assert all(first == 0 < second for first, second in by_rule)
    assert written.items() <= _written(tmp_path / "s").items()


def _trial(run: dict[str, Any]) -> Path:
    return Path(run["folder"]) / "trials" / _name(run)


def _name(run: dict[str, Any]) -> str:
    return f"lambda-{run['lambda']}-seed-{run['seed']}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_again_and_again_a_sweep_ends_as_an_unbroken_one(
    small: Small, tmp_path: Path
) -> None:
    settings = small()
    flags = ("--lambda", "0,1e3", "--seeds", "1")
    whole = _run(_command(tmp_path / "whole", settings, *flags))
    folder = tmp_path / "killed"
    command = _command(folder, settings, *flags)
    kept: dict[str, int] = {}
    for wanted in (
        "trials/lambda-0-seed-0/run.json",
        "trials/lambda-0-seed-0/stages/01-demo-topic",
        "trials/lambda-1000-seed-0/stages/01-demo-topic",
    ):
        with (tmp_path / "words").open("w") as words:
            life = subprocess.Popen(command, stdout=words, stderr=words)
        deadline = time.monotonic() + 120
        while not (folder / wanted).exists():
            assert life.poll() is None, (tmp_path / "words").read_text()
            assert time.monotonic() < deadline
            os.sched_yield()
        life.send_signal(signal.SIGKILL)
        life.wait()
        now = _written(folder)
        # What was finished before is never made again.
        assert kept.items() <= now.items()
        kept = now
    assert _states(folder, settings, "0,1e3", 1)["RUNNING"] == 1
    done = _run(command)
    assert kept.items() <= _written(folder).items()
    assert _without_folders(done) == _without_folders(whole)
    assert _states(folder, settings, "0,1e3", 1)["COMPLETE"] == 2
    # Scores of so short a run are coarse; adapters are equal to the bit.
    for path in (tmp_path / "whole").rglob("adapter_model.safetensors"):
        twin = folder / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()


def _without_folders(summary: dict[str, Any]) -> dict[str, Any]:
    runs = [{k: v for k, v in run.items() if k != "folder"} for run in summary["runs"]]
    return {**summary, "runs": runs}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_and_machines_share_one_sweep(small: Small, tmp_path: Path) -> None:
    """Two folders stand for two machines; one of them has two workers."""
    settings = small(max_steps=8)
    storage = ("--storage", f"sqlite:///{tmp_path / 'shared.db'}")
    flags = ("--lambda", "0,1e3", "--seeds", "2", *storage)
    commands = [
        _command(tmp_path / "one", settings, *flags, "--processes", "2"),
        _command(tmp_path / "two", settings, *flags),
    ]
    lives = [subprocess.Popen(commands[0], stdout=subprocess.PIPE, text=True)]
    # Workers start slowly: the second machine, which has none to start, would do all by itself.
    while not list(tmp_path.glob("one/trials/*/run.json")):
        assert lives[0].poll() is None
        time.sleep(0.1)
    lives.append(subprocess.Popen(commands[1], stdout=subprocess.PIPE, text=True))
    summaries = [json.loads(life.communicate(timeout=500)[0]) for life in lives]
    assert [life.returncode for life in lives] == [0, 0]
    assert summaries[0] == summaries[1]
    runs = summaries[0]["runs"]
    assert len(runs) == 4
    # Each run was made once, by the machine that says so.
    made = [path.parent.name for path in tmp_path.glob("*/trials/*/results.json")]
    assert sorted(made) == sorted(_name(run) for run in runs)
    study = open_study(storage[1], sweep_name(settings))
    done = trials_of(study, points_of("0,1e3", 2, settings), "COMPLETE")
    assert len(done) == 4
    assert len({trial.user_attrs["process"] for trial in done}) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_workers_end_with_the_process_that_started_them(
    number: signal.Signals, code: int, small: Small, tmp_path: Path
) -> None:
    # So many steps that nobody is done before the end comes.
    settings = small(max_steps=100_000)
    flags = ("--lambda", "0,1e3", "--seeds", "1", "--processes", "2")
    life = subprocess.Popen(_command(tmp_path / "s", settings, *flags))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("s/trials/*/run.json")):
        assert life.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(life.pid).children(recursive=True)
    assert len(workers) >= 2
    life.send_signal(number)
    left_with = life.wait(timeout=60)
    deadline = time.monotonic() + 60
    while (alive := [one for one in workers if _is_at_work(one)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in alive:
        one.kill()
    assert (left_with, alive) == (code, [])


def _is_at_work(process: psutil.Process) -> bool:
    try:
        # Where nobody waits for an orphan, what is left of it is a zombie.
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_that_fails_stops_no_other(small: Small, tmp_path: Path) -> None:
    settings = small()
    done = run_sweep(settings, points_of("0,1e300", 1, settings), tmp_path / "s")
    good, bad = done.json["outcomes"]
    assert good["oa"] is not None
    assert bad["oa"] is None
    assert "inf" in bad["failed"][0] or "nan" in bad["failed"][0]
    with pytest.raises(EllaError, match="every run failed"):
        run_sweep(settings, points_of("1e300", 1, settings), tmp_path / "s")


def test_a_dead_worker_is_known_by_its_lock_and_a_live_one_left_alone(
    small: Small, tmp_path: Path
) -> None:
    from optuna.trial import TrialState

    from ella_cli.sweep.study import take

    settings = small()
    points = points_of("0", 1, settings)
    study = open_study(f"sqlite:///{tmp_path / 'study.db'}", "s")
    fill_queue(study, points, tmp_path)
    taken = take(study.ask(), points, tmp_path)
    assert taken is not None
    release_dead(study, tmp_path)
    assert len(trials_of(study, points, "RUNNING")) == 1
    # What is queued twice by two workers at once is run by one of them.
    for where in (tmp_path, tmp_path / "elsewhere"):
        study.enqueue_trial({"lambda": 0.0, "seed": 0}, user_attrs={"point": points[0].name})
        late = study.ask()
        assert late.user_attrs["point"] == points[0].name
        assert take(late, points, where) is None
        study.tell(late, state=TrialState.PRUNED)
    taken[1].release()
    release_dead(study, tmp_path / "elsewhere")
    assert len(trials_of(study, points, "RUNNING")) == 1
    release_dead(study, tmp_path)
    assert [t.number for t in trials_of(study, points, "FAIL")] == [0]


def test_a_worker_that_slept_and_was_taken_for_dead_ends_its_run(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small()
    points = points_of("0", 1, settings)
    storage, folder = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "s"
    queued = _fall_asleep(monkeypatch, settings, points, storage, folder)
    done = run_sweep(settings, points, folder, storage=storage)
    assert len(done.json["runs"]) == 1
    # While the sleeper holds the run, nobody queues it again.
    assert queued == [0]
    study = open_study(storage, sweep_name(settings))
    assert [len(trials_of(study, points, state)) for state in ("FAIL", "COMPLETE")] == [1, 1]


def test_a_run_that_fails_after_it_was_taken_away_fails_as_any_other(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small()
    points = points_of("1e300", 1, settings)
    storage, folder = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "s"
    _fall_asleep(monkeypatch, settings, points, storage, folder)
    with pytest.raises(EllaError, match="every run failed, the first because"):
        run_sweep(settings, points, folder, storage=storage)


def _fall_asleep(
    monkeypatch: pytest.MonkeyPatch,
    settings: RunSettings,
    points: Sequence[Point],
    storage: str,
    folder: Path,
) -> list[int]:
    """Has the first run end after its worker was taken for dead; how many runs were then queued."""
    from optuna.trial import TrialState

    from ella_cli import sequence

    real, queued = sequence.run_order, []

    def asleep(*args: Any, **options: Any) -> dict[str, Any]:
        try:
            return real(*args, **options)
        finally:
            monkeypatch.setattr(sequence, "run_order", real)
            # What another worker does after the grace period.
            study = open_study(storage, sweep_name(settings))
            study.tell(trials_of(study, points, "RUNNING")[0].number, state=TrialState.FAIL)
            fill_queue(study, points, folder)
            queued.append(len(trials_of(study, points, "WAITING")))

    monkeypatch.setattr(sequence, "run_order", asleep)
    return queued


def test_the_folder_of_a_sweep_may_have_any_name_but_one_that_is_no_text(
    small: Small, tmp_path: Path
) -> None:
    settings = small()
    points = points_of("0", 1, settings)
    folder = tmp_path / "what? #1 {50%41}"
    run_sweep(settings, points, folder)
    assert (folder / "study.db").is_file()
    assert len(list(tmp_path.iterdir())) == 1
    unreadable = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(StorageError, match="not UTF-8"):
        run_sweep(settings, points, unreadable)
    assert not unreadable.exists()


def test_what_would_choose_on_test_rows_or_mix_sweeps_is_refused(
    small: Small, tmp_path: Path
) -> None:
    settings = small()
    points = points_of("0", 1, settings)
    with pytest.raises(SettingsError, match="must not choose it on test rows"):
        run_sweep(small(validation=0), points, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    run_sweep(settings, points, tmp_path / "s")
    with pytest.raises(SettingsError, match="of other settings"):
        run_sweep(small(learning_rate=0.5), points, tmp_path / "s")
    with pytest.raises(StorageError, match="cannot use the storage"):
        run_sweep(settings, points, tmp_path / "other", storage="nosuch://me:secret@host/x")
    with pytest.raises(StorageError, match=r"the storage postgresql://…: invalid literal"):
        run_sweep(settings, points, tmp_path / "third", storage="postgresql://me:secret@host:a/x")
    # A name of one's own does not make another sweep the same.
    shared = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "study_name": "mine"}
    run_sweep(settings, points, tmp_path / "one", **shared)
    for folder, words in (("one", "of other settings"), ("two", "with other settings")):
        with pytest.raises(SettingsError, match=words):
            run_sweep(small(learning_rate=0.5), points, tmp_path / folder, **shared)


def test_a_sweep_that_could_not_begin_leaves_its_place_to_a_mended_one(
    small: Small, tmp_path: Path
) -> None:
    shared = {"study_name": "mine"}
    wrong = small(order="demo-topic,demo-moood")
    with pytest.raises(EllaError, match="no task is called 'demo-moood'"):
        run_sweep(wrong, points_of("0", 1, wrong), tmp_path / "s", **shared)
    assert not (tmp_path / "s").exists()
    wrong = small(model="./nowhere")
    with pytest.raises(EllaError, match="every run failed"):
        run_sweep(wrong, points_of("0", 1, wrong), tmp_path / "s", **shared)
    run_sweep(small(), points_of("0", 1, small()), tmp_path / "s", **shared)


def test_a_first_stage_that_does_not_fit_is_trained_anew(small: Small, tmp_path: Path) -> None:
    settings = small()
    run_sweep(settings, points_of("0", 1, settings), tmp_path / "s")
    other = tmp_path / "s/trials/lambda-0-seed-0/run.json"
    record = json.loads(other.read_text())
    # As of a machine that computes otherwise.
    other.write_text(json.dumps(record | {"precision": "float16"}))
    done = run_sweep(settings, points_of("0,1e3", 1, settings), tmp_path / "s")
    assert [len(one["seeds"]) for one in done.json["outcomes"]] == [1, 1]


def test_a_password_is_not_printed(small: Small) -> None:
    with pytest.raises(StorageError) as caught:
        open_study("mysql+nosuch://me:secret@host/x", "s")
    assert "secret" not in caught.value.message
