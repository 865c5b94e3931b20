from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ella_cli.report.results import RunResults, read_run
from ella_cli.report.signs import balances, signs
from tests.report.conftest import curves, write_manifest

WriteRun = Callable[..., Path]


def run_with(write_run: WriteRun, lam: float, **changes: Any) -> RunResults:
    """A quiet run (λ = 1) whose third stage is as told."""
    folder = write_run(lam=1.0)
    write_manifest(folder / "stages" / "03-yahoo", "yahoo", 3, "ella", lam, **changes)
    return read_run(folder)


def kinds(run: RunResults, task: str = "yahoo") -> set[str]:
    return {sign.kind for sign in signs(run) if sign.task == task}


def test_an_update_that_vanished_from_an_unlearned_task_is_a_collapse(write_run: WriteRun) -> None:
    gone = {**curves(3, 1.0), "ce": [2.5] * 40, "update_norm": [0.01] * 40}
    run = run_with(write_run, 1.0, curves=gone, update_norm=0.01)
    assert "collapse" in kinds(run)
    assert "2.500 from 2.500" in next(s.text for s in signs(run) if s.kind == "collapse")


@pytest.mark.parametrize(("lam", "said"), [(0.0, "No penalty held it"), (1.0, "λ is too large")])
def test_a_collapse_is_laid_to_the_penalty_only_where_there_was_one(
    write_run: WriteRun, lam: float, said: str
) -> None:
    gone = {**curves(3, lam), "ce": [2.5] * 40, "update_norm": [0.01] * 40}
    run = run_with(write_run, lam, curves=gone, update_norm=0.01)
    assert said in next(sign.text for sign in signs(run) if sign.kind == "collapse")


def test_a_small_update_that_learned_its_task_is_none(write_run: WriteRun) -> None:
    learned = {**curves(3, 1.0), "update_norm": [0.01] * 40}
    assert "collapse" not in kinds(run_with(write_run, 1.0, curves=learned, update_norm=0.01))


def test_an_unlearned_task_with_a_normal_update_is_none(write_run: WriteRun) -> None:
    hard = {**curves(3, 1.0), "ce": [2.5] * 40}
    assert "collapse" not in kinds(run_with(write_run, 1.0, curves=hard))


def test_an_update_that_first_grew_and_then_vanished_is_a_collapse(write_run: WriteRun) -> None:
    # Every stage is as small, so only its own peak shows it.
    folder = write_run(lam=1.0)
    for position, task in enumerate(("dbpedia", "amazon", "yahoo", "agnews"), start=1):
        drawn = {**curves(position, 1.0), "ce": [2.5] * 40, "update_norm": [3.0] + [0.1] * 39}
        stage = folder / "stages" / f"{position:02d}-{task}"
        write_manifest(stage, task, position, "ella", 1.0, curves=drawn, update_norm=0.1)
    assert "collapse" in kinds(read_run(folder))


def test_a_penalty_far_below_the_loss_is_idle_and_the_first_task_never_is(
    write_run: WriteRun,
) -> None:
    run = read_run(write_run(lam=1.0))
    assert kinds(run, "yahoo") == {"idle"}
    assert kinds(run, "dbpedia") == set()


def test_without_a_penalty_nothing_is_idle(write_run: WriteRun) -> None:
    assert signs(read_run(write_run(method="inclora", lam=0.0))) == ()


def test_a_penalty_above_the_loss_rules(write_run: WriteRun) -> None:
    assert "ruling" in kinds(run_with(write_run, 1e5))


@pytest.mark.parametrize(("share", "idle"), [(0.9, True), (1.1, False)])
def test_idle_means_below_a_thousandth_at_every_step(
    write_run: WriteRun, share: float, idle: bool
) -> None:
    flat = {**curves(3, 1.0), "ce": [1.0] * 40, "weighted_penalty": [0.0] * 39}
    flat["weighted_penalty"].append(share * 1e-3)
    assert ("idle" in kinds(run_with(write_run, 1.0, curves=flat))) == idle


def test_starts_and_ends_are_means_over_a_tenth_of_the_steps(write_run: WriteRun) -> None:
    ce = [float(i) for i in range(1, 21)]
    drawn = {"step": list(range(20)), "ce": ce, "weighted_penalty": [0.5 * c for c in ce]}
    balance = balances(run_with(write_run, 1.0, curves=drawn))[2]
    assert balance.ce_start == pytest.approx(1.5)
    assert balance.ce_end == pytest.approx(19.5)
    assert balance.ratio_end == pytest.approx(0.5)
    assert balance.ratio_largest == pytest.approx(0.5)
