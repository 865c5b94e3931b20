from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.errors import SettingsError, StorageError
from ella_cli.inspect.forgetting import forgetting_of
from tests.inspect.conftest import MODULES, random_factors, updates_of

WriteRun = Callable[..., Path]
MATRIX = (
    (0.8, 0.1, 0.1, 0.1, 0.1),
    (0.7, 0.6, 0.1, 0.1, 0.1),
    (0.5, 0.6, 0.7, 0.1, 0.1),
    (0.5, 0.4, 0.6, 0.9, 0.1),
    (0.3, 0.4, 0.5, 0.8, 0.9),
)


def test_losses_are_differences_of_neighbouring_rows(write_run: WriteRun) -> None:
    report = forgetting_of([write_run("r", MATRIX)])
    lost = {(pair.stage, pair.earlier): pair.lost for pair in report.pairs}
    assert len(lost) == 10
    assert lost["task2", "task0"] == pytest.approx(0.2)
    assert lost["task3", "task1"] == pytest.approx(0.2)
    assert lost["task2", "task1"] == pytest.approx(0.0)
    by_stage = {one.stage: one.lost for one in report.transitions}
    assert by_stage["task4"] == pytest.approx((0.2 + 0.0 + 0.1 + 0.1) / 4)


def test_runs_of_one_name_are_told_apart_by_their_folders(
    write_run: WriteRun, tmp_path: Path
) -> None:
    one = write_run("r", MATRIX)
    other = shutil.copytree(one, tmp_path / "again" / one.name)
    shown = {pair.run for pair in forgetting_of([one, other]).pairs}
    assert shown == {f"{one.parent.name}/{one.name}", f"again/{one.name}"}
    assert {pair.run for pair in forgetting_of([one]).pairs} == {one.name}


def test_penalties_are_those_of_the_multiplied_out_updates(write_run: WriteRun) -> None:
    report = forgetting_of([write_run("r", MATRIX)])
    parts = [updates_of(random_factors(seed)) for seed in range(5)]
    for pair in report.pairs:
        new, old = int(pair.stage[-1]), int(pair.earlier[-1])
        expected = sum(float((parts[new][n] * parts[old][n]).square().sum()) for n in MODULES)
        assert pair.overlap.penalty == pytest.approx(expected, rel=1e-6)
    for one in report.transitions:
        t = int(one.stage[-1])
        past = {n: sum(part[n] for part in parts[:t]) for n in MODULES}
        inner = sum(float((parts[t][n] * past[n]).sum()) for n in MODULES)
        assert one.overlap.inner == pytest.approx(inner, rel=1e-5, abs=1e-5)
        assert one.bound is not None
        g = sum(float((parts[t][n] * (1 + 100 * past[n] ** 2)).square().sum()) for n in MODULES)
        count = sum(m * k for m, k in MODULES.values())
        expected = math.sqrt(g) / (2 * math.sqrt(100)) * math.sqrt(count)
        assert one.bound.right_side == pytest.approx(expected, rel=1e-5)


def test_ten_pairs_are_ranked_and_four_stages_are_not(write_run: WriteRun) -> None:
    report = forgetting_of([write_run("r", MATRIX)])
    assert {one.n for one in report.by_pair} == {10}
    assert all(one.rho is not None for one in report.by_pair)
    assert {one.n for one in report.by_transition} == {4}
    assert all(one.rho is None for one in report.by_transition)


def test_one_run_by_two_names_is_refused(write_run: WriteRun) -> None:
    run = write_run("r", MATRIX)
    with pytest.raises(SettingsError, match="r is named twice"):
        forgetting_of([run, run / ".." / "r"])


def test_runs_pool_and_a_run_without_a_penalty_has_no_bound(write_run: WriteRun) -> None:
    runs = [write_run("a", MATRIX), write_run("b", MATRIX, method="inclora", lam=0.0, seed=1)]
    report = forgetting_of(runs)
    bound, norm, *_ = report.by_transition
    assert (bound.predictor, bound.n) == ("bound (right side)", 4)
    assert (norm.n, norm.rho is not None) == (8, True)


@pytest.mark.parametrize("settings", [{"energy": "abs"}, {"last": 1}, {"decay": 0.5}])
def test_a_penalty_on_another_energy_than_the_sum_has_no_bound_here(
    write_run: WriteRun, settings: dict[str, object]
) -> None:
    run = write_run("r", MATRIX)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"settings": settings}))
    assert [one.bound for one in forgetting_of([run]).transitions] == [None] * 4


def test_a_reference_run_gives_a_measured_update(write_run: WriteRun) -> None:
    run = write_run("a", MATRIX)
    reference = write_run("b", MATRIX, method="inclora", lam=0.0, seed=1)
    first = forgetting_of([run], reference).transitions[0]
    assert first.bound is not None
    assert first.bound.reference == "measured"
    g = updates_of(random_factors(11))
    norm = math.sqrt(sum(float(w.square().sum()) for w in g.values()))
    assert first.bound.reference_norm == pytest.approx(norm, rel=1e-6)


def test_stages_that_are_not_terms_of_a_sum_are_refused(write_run: WriteRun) -> None:
    with pytest.raises(SettingsError, match="do not add up"):
        forgetting_of([write_run("s", MATRIX, method="seqlora", lam=0.0)])


def test_a_reference_that_starts_from_no_past_is_refused(write_run: WriteRun) -> None:
    run = write_run("a", MATRIX)
    with pytest.raises(SettingsError, match="is a run of seqlora, which starts no task from"):
        forgetting_of([run], write_run("s", MATRIX, method="seqlora", lam=0.0))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no run\.json"):
        forgetting_of([tmp_path])
