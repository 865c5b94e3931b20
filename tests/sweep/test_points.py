from __future__ import annotations

import pytest

from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError
from ella_cli.sweep.points import lambda_order, points_of, settings_digest, sweep_name

BASE = RunSettings(validation=10, seed=5)


def test_every_lambda_meets_every_seed_one_seed_after_the_other() -> None:
    points = points_of("0, 1e3,100000", 2, BASE)
    assert [point.name for point in points] == [
        "lambda-0-seed-5", "lambda-1000-seed-5", "lambda-100000-seed-5",
        "lambda-0-seed-6", "lambda-1000-seed-6", "lambda-100000-seed-6",
    ]  # fmt: skip
    settings = points[4].settings(BASE)
    assert (settings.lam, settings.seed, settings.validation) == (1000.0, 6, 10)


@pytest.mark.parametrize(
    ("lambdas", "words"),
    [
        ("0,banana", "--lambda banana"),
        ("-1", "--lambda -1"),
        ("nan", "--lambda nan"),
        ("1e3,1000", "names 1000 twice"),
        (" , ", "names no λ"),
    ],
)
def test_a_lambda_that_no_run_takes_is_refused_before_any_run(lambdas: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        points_of(lambdas, 1, BASE)


def test_each_lambda_is_looked_at_with_what_else_is_set() -> None:
    base = BASE.model_copy(update={"method": "olora", "olora_l2": 0.1})
    with pytest.raises(SettingsError, match="olora-l2"):
        points_of("0.5,0", 1, base)
    assert len(points_of("0.5", 2, base)) == 2


def test_a_lambda_keeps_all_its_digits() -> None:
    points = points_of("1e3,1234567,0.1,1000001,1e6", 1, BASE)
    assert [point.lam for point in points] == ["1000", "1234567", "0.1", "1000001", "1e+06"]
    assert [point.settings(BASE).lam for point in points] == [1e3, 1234567, 0.1, 1000001, 1e6]


def test_a_method_without_a_penalty_has_nothing_to_sweep() -> None:
    with pytest.raises(SettingsError, match="inclora has no penalty"):
        points_of("0,1", 1, BASE.model_copy(update={"method": "inclora"}))


def test_one_sweep_has_one_name_wherever_its_data_and_device_are() -> None:
    from pathlib import Path

    same = BASE.model_copy(update={"seed": 0, "lam": 3.0, "device": "cuda:1", "data": Path("/x")})
    assert sweep_name(same) == sweep_name(BASE)
    for other in ({"validation": 11}, {"learning_rate": 0.5}, {"order": "2"}, {"method": "olora"}):
        assert sweep_name(BASE.model_copy(update=other)) != sweep_name(BASE)


def test_a_sweep_is_another_with_another_optimizer_where_both_step_apart() -> None:
    plain = {"optim": "adamw"}
    for alike in ({"method": "olora"}, {"energy": "sum"}):
        base = BASE.model_copy(update=alike)
        assert sweep_name(base.model_copy(update=plain)) == sweep_name(base)
        assert settings_digest(base.model_copy(update=plain)) == settings_digest(base)
    assert sweep_name(BASE.model_copy(update=plain)) != sweep_name(BASE)
    assert settings_digest(BASE.model_copy(update=plain)) != settings_digest(BASE)


def test_numbers_go_by_size_and_words_last() -> None:
    assert lambda_order(["auto", "100000", "0", "1000"]) == ["0", "1000", "100000", "auto"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["0", "1", "100", "auto"]),
        ({"energy": "curvature"}, ["0", "1", "100", "auto"]),
        ({"energy": "sum"}, ["0", "1000", "10000", "100000", "auto"]),
        ({"curvature_rows": 0}, ["0", "1000", "10000", "100000", "auto"]),
        ({"method": "olora"}, ["0", "0.05", "0.5", "5"]),
        ({"method": "olora", "olora_l2": 0.1}, ["0.05", "0.5", "5"]),
    ],
)
def test_what_is_penalised_decides_the_usual_lambdas(
    settings: dict[str, object], expected: list[str]
) -> None:
    points = points_of(None, 1, BASE.model_copy(update=settings))
    assert [point.lam for point in points] == expected
