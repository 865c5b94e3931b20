from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.errors import ShapeError
from ella_cli.inspect.overlap import TOP_SHARE, Overlap, overlap_of
from ella_cli.past import Past, accumulate, read_past
from tests.inspect.conftest import MODULES, WriteAdapter, random_factors, updates_of


def check(found: Overlap, update: Tensor, past: Tensor, energy: Tensor) -> None:
    """Against ΔW and W multiplied out in f64; several modules come laid end to end."""
    assert found.update_norm == pytest.approx(float(update.norm()), rel=1e-5)
    assert found.past_norm == pytest.approx(float(past.norm()), rel=1e-5)
    assert found.energy_norm == pytest.approx(float(energy.norm()), rel=1e-5)
    product = float((update * past).sum())
    assert found.inner == pytest.approx(product, rel=1e-4, abs=1e-5)
    assert found.cosine == pytest.approx(product / float(update.norm() * past.norm()), abs=1e-6)
    assert found.penalty == pytest.approx(float((update * energy).square().sum()), rel=1e-5)


@pytest.mark.parametrize("store", ["factored", "dense"])
def test_an_update_against_the_past(
    store: str,
    write_adapter: WriteAdapter,
    summed: dict[str, Tensor],
    request: pytest.FixtureRequest,
) -> None:
    report = overlap_of(read_adapter(write_adapter("new", 9)), request.getfixturevalue(store))
    updates = updates_of(random_factors(9))
    chances = {n: float((updates[n].norm() * w.norm()) ** 2) / w.numel() for n, w in summed.items()}
    for module in report.modules:
        update, past = updates[module.name], summed[module.name]
        check(module, update, past, past.abs())
        penalty = float((update * past).square().sum())
        assert module.collision == pytest.approx(penalty / chances[module.name], rel=1e-5)
        count = round(TOP_SHARE * past.numel())
        highest = past.abs().flatten().topk(count).indices
        share = float(update.flatten()[highest].square().sum() / update.square().sum())
        assert module.top_share == pytest.approx(share, rel=1e-5)
        assert module.top_expected == pytest.approx(count / past.numel())
    flat_update = torch.cat([updates[n].flatten() for n in MODULES])
    flat_past = torch.cat([summed[n].flatten() for n in MODULES])
    check(report.total, flat_update, flat_past, flat_past.abs())
    assert report.total.collision == pytest.approx(
        float((flat_update * flat_past).square().sum()) / sum(chances.values()), rel=1e-5
    )


def test_each_past_task_is_met_by_itself(write_adapter: WriteAdapter, factored: Past) -> None:
    report = overlap_of(read_adapter(write_adapter("new", 9)), factored)
    updates = updates_of(random_factors(9))
    assert [task.name for task in report.tasks] == ["dbpedia", "amazon", "yahoo"]
    for seed, task in enumerate(report.tasks):
        others = updates_of(random_factors(seed))
        check(
            task,
            torch.cat([updates[n].flatten() for n in MODULES]),
            torch.cat([others[n].flatten() for n in MODULES]),
            torch.cat([others[n].abs().flatten() for n in MODULES]),
        )
        hardest = max(MODULES, key=lambda n: float((updates[n] * others[n]).square().sum()))
        assert dict(report.worst)[task.name].name == hardest


def test_an_energy_that_is_not_the_signed_sum_keeps_the_two_apart(
    three_tasks: list[Path], write_adapter: WriteAdapter, summed: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "abs.safetensors"
    accumulate(three_tasks, path, energy="abs")
    report = overlap_of(read_adapter(write_adapter("new", 9)), read_past(path))
    updates = updates_of(random_factors(9))
    parts = [updates_of(random_factors(seed)) for seed in range(3)]
    energy = {n: torch.stack([part[n].abs() for part in parts]).sum(dim=0) for n in MODULES}
    for module in report.modules:
        n = module.name
        check(module, updates[n], summed[n], energy[n])


def test_the_same_task_again_collides_and_disjoint_coordinates_do_not(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    rows = {n: torch.zeros(m, 1) for n, (m, _) in MODULES.items()}
    ones = {n: torch.ones(1, k) for n, (_, k) in MODULES.items()}
    upper = {n: (_at(rows[n], 0), ones[n]) for n in MODULES}
    lower = {n: (_at(rows[n], 1), ones[n]) for n in MODULES}
    path = tmp_path / "past.safetensors"
    accumulate([write_adapter("one", factors=upper)], path, store="factored")
    past = read_past(path)
    again = overlap_of(read_adapter(tmp_path / "one"), past)
    assert again.contained_as == "one"
    assert again.total.cosine == pytest.approx(1)
    assert again.total.collision is not None
    assert again.total.collision > 10
    apart = overlap_of(read_adapter(write_adapter("two", factors=lower)), past)
    assert apart.contained_as is None
    assert apart.total.penalty == apart.total.inner == apart.total.collision == 0
    assert apart.total.top_share == 0


def test_modules_that_nothing_protects_are_named(
    write_adapter: WriteAdapter, factored: Past
) -> None:
    wider = {**MODULES, "model.layers.0.mlp.up_proj": (8, 20)}
    folder = write_adapter("wider", factors=random_factors(5, wider))
    report = overlap_of(read_adapter(folder), factored)
    assert report.only_in_adapter == ("model.layers.0.mlp.up_proj",)
    assert len(report.modules) == len(MODULES)


def test_a_foreign_adapter_is_refused_with_both_shapes(
    write_adapter: WriteAdapter, factored: Past
) -> None:
    name = next(iter(MODULES))
    folder = write_adapter("foreign", factors=random_factors(5, {name: (6, 20)}))
    with pytest.raises(ShapeError, match=r"\(6, 20\).*\(24, 20\)"):
        overlap_of(read_adapter(folder), factored)
    stranger = write_adapter("stranger", factors=random_factors(5, {"other.q_proj": (6, 20)}))
    with pytest.raises(ShapeError, match="no module in common"):
        overlap_of(read_adapter(stranger), factored)


def _at(column: Tensor, row: int) -> Tensor:
    filled = column.clone()
    filled[row] = 1.0
    return filled
