"""Which runs are averaged, which stand apart, and what tells them from one another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ella_cli.config import optim_in_effect
from ella_cli.report import (
    comparison_table,
    make_report,
    markdown,
    read_run,
)
from tests.report.conftest import MATRIX, printed

WriteRun = Callable[..., Path]


def test_seeds_are_averaged_and_methods_stand_side_by_side(write_run: WriteRun) -> None:
    higher = [list(row) for row in MATRIX]
    higher[3] = [0.55, 0.40, 0.50, 0.95]
    runs = [
        write_run("a", seed=0),
        write_run("b", seed=1, matrix=higher),
        write_run("c", method="inclora", lam=0.0),
    ]
    report = make_report(runs)
    whole = write_run("d", seed=2, importance=1.0)
    assert make_report([runs[0], whole]).json["comparison"][0]["runs"] == ["a", "d"]
    ella, inclora = report.json["comparison"]
    assert (ella["label"], ella["runs"]) == ("ella λ=10000", ["a", "b"])
    assert ella["figures"]["oa"] == pytest.approx(
        {"mean": 0.55, "deviation": 0.1 / 2**0.5, "seeds": 2}
    )
    assert inclora["figures"]["oa"]["deviation"] is None
    assert "0.550 ± 0.071" in printed(comparison_table([read_run(run) for run in runs]))


def test_nothing_is_written_as_minus_nothing(write_run: WriteRun) -> None:
    """A change of −0.0001 rounds to a zero, which has no sign."""
    last = list(MATRIX[-1])
    kept = [list(row) for row in MATRIX[:-1]]
    for i in range(3):
        kept[i][i] = last[i] + 1e-4
    text = printed(comparison_table([read_run(write_run("a", matrix=[*kept, last]))]))
    assert "0.000" in text
    assert "-0.000" not in text


def test_runs_of_other_settings_are_not_averaged_and_say_what_differs(write_run: WriteRun) -> None:
    runs = [write_run("a"), write_run("b", seed=1)]
    for run, steps in zip(runs, (40, 80), strict=True):
        (run / "run.json").write_text(json.dumps({"settings": {"max_steps": steps, "seed": 0}}))
    labels = [group["label"] for group in make_report(runs).json["comparison"]]
    assert labels == ["ella λ=10000 (max_steps 40)", "ella λ=10000 (max_steps 80)"]


def test_optimizers_are_told_apart_where_they_step_apart(
    write_run: WriteRun, tmp_path: Path
) -> None:
    """Where no curvature is protected, `adamw-past` is AdamW by another name."""
    curvature = {"method": "ella", "energy": None, "curvature_rows": 64}
    plain = {"method": "inclora", "energy": None, "curvature_rows": 0}
    runs = []
    for name, settings in (("ella", curvature), ("inclora", plain)):
        for seed, optim in enumerate(("adamw", "adamw-past")):
            run = write_run(f"{name}-{optim}", method=name, seed=seed)
            recorded = {"settings": {**settings, "seed": seed, "optim": optim}}
            (run / "run.json").write_text(json.dumps(recorded))
            runs.append(run)
    labels = [(group["label"], group["runs"]) for group in make_report(runs).json["comparison"]]
    assert labels == [
        ("ella λ=10000 (optim adamw)", ["ella-adamw"]),
        ("ella λ=10000 (optim adamw-past)", ["ella-adamw-past"]),
        ("inclora λ=10000", ["inclora-adamw", "inclora-adamw-past"]),
    ]


def test_of_results_kept_alone_the_optimizer_is_known(write_run: WriteRun, tmp_path: Path) -> None:
    kept = []
    # Those of an older ella say nothing of it.
    for seed, said in enumerate(({}, {"optim": "adamw"}, {"optim": "adamw-past"})):
        file = tmp_path / f"ella-s{seed}.json"
        shutil.copy(write_run(f"ella-s{seed}", seed=seed, **said) / "results.json", file)
        kept.append(file)
    labels = [(group["label"], group["runs"]) for group in make_report(kept).json["comparison"]]
    assert labels == [
        ("ella λ=10000 (optim not said)", ["ella-s0"]),
        ("ella λ=10000 (optim adamw)", ["ella-s1"]),
        ("ella λ=10000 (optim adamw-past)", ["ella-s2"]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 0}, {"header": True}, {"validation": 50}, {"importance": "auto"},
        {"importance": 0.5}, {"optim": "muon"},
        {"base_model": {"model": "m", "fingerprint": "f"}}, {"test_rows": {"dbpedia": 3}},
    ],
)  # fmt: skip
def test_only_seeds_of_one_experiment_are_averaged(
    write_run: WriteRun, changes: dict[str, object]
) -> None:
    runs = [write_run("a", seed=0), write_run("b", **{"seed": 1, **changes})]
    assert [group["runs"] for group in make_report(runs).json["comparison"]] == [["a"], ["b"]]


def test_seeds_that_found_each_a_lambda_of_its_own_are_averaged(write_run: WriteRun) -> None:
    runs = [
        write_run(name, **{"seed": seed, "lambda": "auto", "lambdas": [0.0, lam], "rho": 3.0})
        for seed, (name, lam) in enumerate({"a": 2572.8, "b": 1831.5}.items())
    ]
    (group,) = make_report(runs).json["comparison"]
    assert (group["label"], group["runs"]) == ("ella λ=auto", ["a", "b"])
    assert make_report(runs[:1]).json["comparison"][0]["label"] == "ella λ=2572.8 (auto)"


def test_runs_of_two_precisions_are_not_averaged(write_run: WriteRun) -> None:
    runs = [
        write_run("a", seed=0, precision="float32"),
        write_run("b", seed=1, precision="bfloat16"),
        write_run("c", seed=2),
    ]
    assert [g["runs"] for g in make_report(runs).json["comparison"]] == [["a", "c"], ["b"]]


def test_results_kept_alone_are_averaged_by_their_names_and_that_is_said(
    write_run: WriteRun, tmp_path: Path
) -> None:
    """Nothing but its name says that one of them was made with other settings."""
    kept = []
    for name, seed in (("inclora-s0", 0), ("inclora-s1", 1), ("muon-s2", 2)):
        file = tmp_path / f"{name}.json"
        shutil.copy(write_run(name, method="inclora", lam=0.0, seed=seed) / "results.json", file)
        kept.append(file)
    report = make_report(kept)
    groups = report.json["comparison"]
    assert [group["runs"] for group in groups] == [["inclora-s0", "inclora-s1"], ["muon-s2"]]
    assert not any(group["settings_known"] for group in groups)
    text = markdown.render(report.document)
    assert "settings not known, averaged by name: inclora-s0, inclora-s1" in text


def test_forgetting_of_fewer_cells_is_a_lower_bound_and_never_averaged_with_one_of_all(
    write_run: WriteRun,
) -> None:
    fewer = [list(row) for row in MATRIX]
    fewer[2][0] = None
    runs = [write_run("a", seed=0), write_run("b", seed=1, matrix=fewer)]
    said = "forgetting is from the cells that were scored: a lower bound"
    assert [said in markdown.render(make_report([run]).document) for run in runs] == [False, True]
    report = make_report(runs)
    (group,) = report.json["comparison"]
    assert group["figures"]["forgetting"] is None
    assert group["figures"]["bwt"]["seeds"] == 2
    words = "is not averaged: its seeds were scored in other cells"
    assert words in markdown.render(report.document)
    alike = write_run("c", seed=2, matrix=fewer)
    report = make_report([runs[1], alike])
    assert report.json["comparison"][0]["figures"]["forgetting"]["seeds"] == 2
    assert said in markdown.render(report.document)


@pytest.mark.parametrize(
    ("settings", "optim"),
    [
        ({}, "adamw-past"),
        ({"lambda": "auto"}, "adamw-past"),
        ({"lambda": [0, "auto", 0]}, "adamw-past"),
        ({"lambda": 0}, "adamw"),
        # The first task has nothing to protect.
        ({"lambda": [10, 0, 0]}, "adamw"),
        ({"energy": "sum"}, "adamw"),
        ({"curvature_rows": 0}, "adamw"),
        ({"method": "inclora"}, "adamw"),
        ({"optim": "muon", "lambda": 0}, "muon"),
    ],
)
def test_the_optimizer_in_effect(settings: dict[str, Any], optim: str) -> None:
    asked = {"method": "ella", "optim": "adamw-past", "curvature_rows": 64, **settings}
    assert optim_in_effect(asked) == optim
