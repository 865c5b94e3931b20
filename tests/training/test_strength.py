"""λ found from a strength without units: equal work for any scale, both stores, either penalty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import RHO_OF_CURVATURE, TrainSettings
from ella_cli.errors import SettingsError
from ella_cli.model.base import Base, load_base
from ella_cli.past import Past, accumulate, read_past
from ella_cli.tasks import Task, load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.strength import (
    check_strengths,
    first_loss,
    given_strength,
    reference_cost,
)
from ella_cli.training.task import encode_rows, train_task
from tests.past.conftest import SHAPES, make_adapter  # noqa: F401  (a fixture)
from tests.past.test_curvature import MakeAdapter, measured


@pytest.fixture
def two(make_adapter: MakeAdapter) -> list[Adapter]:  # noqa: F811
    # The second is the smaller one.
    return [
        read_adapter(measured(make_adapter(f"task{i}", i, alpha=4.0 - 2 * i), 100 + i))
        for i in range(2)
    ]


def _delta(adapter: Adapter, name: str) -> torch.Tensor:
    update = adapter.update(name)
    return (update.scale * update.b @ update.a).double()


def test_after_one_task_the_reference_is_that_tasks_own_update(two: list[Adapter]) -> None:
    past = Past.of(two[:1])
    coordinates = sum(float(_delta(two[0], name).pow(4).sum()) for name in SHAPES)
    found = reference_cost(past, past.names)
    assert found == pytest.approx(coordinates, rel=1e-5)


def test_after_two_it_is_the_past_as_large_as_the_largest_update(
    two: list[Adapter], tmp_path: Path
) -> None:
    sums = {name: sum(_delta(one, name) for one in two) for name in SHAPES}
    square = sum(float(one.square().sum()) for one in sums.values())
    largest = max(sum(float(_delta(one, name).square().sum()) for name in SHAPES) for one in two)
    expected = sum(float(one.pow(4).sum()) for one in sums.values()) * largest / square
    for store in ("factored", "dense"):
        accumulate([one.path for one in two], tmp_path / store, store=store)  # type: ignore[arg-type]
        past = read_past(tmp_path / store)
        found = reference_cost(past, past.names)
        assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_given_is_taken_task_by_task() -> None:
    numbers = TrainSettings.model_validate({"lambda": "0,1e3,auto"})
    assert given_strength(numbers, 1).lam == 1000  # type: ignore[union-attr]
    assert given_strength(numbers, 2) is None
    with pytest.raises(SettingsError, match="names 3 values, and this is task 4"):
        given_strength(numbers, 3)
    with pytest.raises(SettingsError, match="not for olora"):
        given_strength(TrainSettings.model_validate({"lambda": "auto", "method": "olora"}), 0)
    assert given_strength(TrainSettings(), 0) is None
    assert given_strength(TrainSettings(method="olora"), 0).lam == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "stages", "words"),
    [
        ({"lambda": "0,1"}, 3, "names 2 values, and this is task 3"),
        ({"lambda": "auto", "method": "olora"}, 1, "not for olora"),
        ({"energy": "curvature", "curvature_rows": 0}, 2, "nothing would be measured"),
        ({"lambda": 0, "method": "olora", "olora_l2": 0.1}, 1, "taken beside the first"),
    ],
)
def test_what_a_later_stage_would_fail_for_is_said_before_the_first(
    settings: dict[str, Any], stages: int, words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        check_strengths(TrainSettings.model_validate(settings), stages)
    check_strengths(TrainSettings.model_validate({"lambda": "0,1,auto"}), 3)
    check_strengths(TrainSettings(energy="sum", curvature_rows=0), 3)
    check_strengths(TrainSettings.model_validate({"lambda": 0, "method": "olora"}), 3)
    check_strengths(TrainSettings(energy="curvature", curvature_rows=0), 1)


def test_the_first_loss_is_the_mean_over_answer_tokens(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), dtype="float32", device="cpu")
    rows = encode_rows(base, [load_task("demo-topic", limit=40)], TrainSettings())
    total, tokens = 0.0, 0
    for row in rows[:32]:
        ids = torch.tensor([row["input_ids"]])
        answer = torch.tensor(row["labels"])
        with torch.no_grad():
            if base.kind == "decoder":
                logits = base.model(ids).logits[0, -len(answer) - 1 : -1]
            else:
                logits = base.model(ids, labels=answer[None]).logits[0]
        total -= float(logits.double().log_softmax(-1).gather(1, answer[:, None]).sum())
        tokens += len(answer)
    assert first_loss(base, rows) == pytest.approx(total / tokens, rel=1e-5)


def test_a_repeat_on_some_modules_costs_their_share(two: list[Adapter]) -> None:
    past = Past.of(two)
    each = [reference_cost(past, [name]) for name in past.names]
    assert sum(each) == pytest.approx(reference_cost(past, past.names), rel=1e-6)
    assert min(each) > 0


def test_the_cost_of_tiny_updates_is_their_fourth_power(
    make_adapter: MakeAdapter,  # noqa: F811
) -> None:
    costs = [
        reference_cost(Past.of([read_adapter(make_adapter(name, 1, alpha=alpha))]), tuple(SHAPES))
        for name, alpha in (("usual", 1.0), ("tiny", 1e-12))
    ]
    assert costs[1] * 1e48 == pytest.approx(costs[0], rel=1e-4)


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_a_cost_that_no_step_could_weigh_is_refused(
    tiny_llama: Path, two_tasks: list[Task], tmp_path: Path, size: float
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(max_steps=1, learning_rate=0.01, curvature_rows=0)
    train_task(base, Assignment("demo-topic", two_tasks[:1]), settings, tmp_path / "1")
    config = tmp_path / "1" / "adapter_config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps(document | {"lora_alpha": size * document["lora_alpha"]}))
    second = Assignment("demo-mood", two_tasks[1:], 1, Past.of([read_adapter(tmp_path / "1")]))
    with pytest.raises(SettingsError, match="--lambda auto finds none"):
        train_task(base, second, settings, tmp_path / "2")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.fixture
def two_tasks() -> list[Task]:
    return [load_task(name, limit=16) for name in ("demo-topic", "demo-mood")]


def _second_of_two(
    base: Base, tasks: list[Task], folder: Path, **settings: Any
) -> tuple[Past, dict[str, Any]]:
    """The past after the first task, and the manifest of the second."""
    chosen = TrainSettings(max_steps=2, learning_rate=0.01, **settings)  # type: ignore[call-arg]
    train_task(base, Assignment("demo-topic", tasks[:1]), chosen, folder / "1")
    past = Past.of([read_adapter(folder / "1")])
    second = Assignment("demo-mood", tasks[1:], 1, past)
    return past, train_task(base, second, chosen, folder / "2")


@pytest.mark.parametrize(("rho", "expected"), [(None, 3.0), (2.0, 2.0)])
def test_another_scale_of_lora_meets_the_same_strength(
    tiny_llama: Path, two_tasks: list[Task], tmp_path: Path, rho: float | None, expected: float
) -> None:
    """The same first update, written with alpha 16 or 64: λ · penalty of a repeat is ρ · CE₀."""
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    for alpha in (16, 64):
        past, manifest = _second_of_two(
            base, two_tasks, tmp_path / str(alpha), lora_alpha=alpha, rho=rho, energy="sum"
        )
        strength = manifest["strength"]
        assert manifest["lambda"] == strength["lam"] > 0
        cost = reference_cost(past, past.names)
        assert strength["lam"] * cost == pytest.approx(expected * strength["first_loss"], rel=1e-4)


@pytest.mark.parametrize(("rho", "expected"), [(None, RHO_OF_CURVATURE), (2.5, 2.5)])
def test_with_curvature_the_strength_is_lambda_itself(
    tiny_llama: Path, two_tasks: list[Task], tmp_path: Path, rho: float | None, expected: float
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    _, manifest = _second_of_two(base, two_tasks, tmp_path, rho=rho, energy="curvature")
    assert manifest["lambda"] == manifest["strength"]["rho"] == expected
    assert manifest["curves"]["penalty"][-1] > 0
