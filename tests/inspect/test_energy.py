from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.inspect.energy import EnergyReport, energy_of
from ella_cli.past import Past, accumulate, read_past
from ella_cli.report.inspected_past import energy_document
from ella_cli.report.markdown import render
from tests.inspect.conftest import MODULES, WriteAdapter, random_factors, updates_of


def truth(summed: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([w.flatten() for w in summed.values()]).norm())


@pytest.mark.parametrize("store", ["factored", "dense"])
def test_norms_and_shares_are_those_of_the_multiplied_out_sum(
    store: str, summed: dict[str, torch.Tensor], request: pytest.FixtureRequest
) -> None:
    report = energy_of(request.getfixturevalue(store))
    assert report.total.concentration.norm == pytest.approx(truth(summed), rel=1e-6)
    for module in report.modules:
        own = summed[module.name]
        assert module.concentration.norm == pytest.approx(float(own.norm()), rel=1e-6)
        assert module.concentration.largest == pytest.approx(float(own.abs().max()), rel=1e-5)
        assert module.share == pytest.approx(float((own.norm() / truth(summed)) ** 2), rel=1e-5)
    assert sum(module.share for module in report.modules) == pytest.approx(1)


def test_cancelled_energy_is_what_opposite_signs_took_back(
    factored: Past, summed: dict[str, torch.Tensor]
) -> None:
    written = sum(
        float(w.abs().sum()) for seed in range(3) for w in updates_of(random_factors(seed)).values()
    )
    kept = sum(float(w.abs().sum()) for w in summed.values())
    assert energy_of(factored).total.cancelled == pytest.approx(1 - kept / written, rel=1e-6)


def test_an_update_and_its_negative_cancel_wholly(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    factors = random_factors(0)
    opposite = {name: (-b, a) for name, (b, a) in factors.items()}
    path = tmp_path / "past.safetensors"
    folders = [write_adapter("one", factors=factors), write_adapter("two", factors=opposite)]
    accumulate(folders, path, store="factored")
    assert energy_of(read_past(path)).total.cancelled == pytest.approx(1, abs=1e-6)


def test_weights_are_told_and_claim_no_lost_protection(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    factors = random_factors(0)
    opposite = {name: (-b, a) for name, (b, a) in factors.items()}
    folders = [write_adapter("one", factors=factors), write_adapter("two", factors=opposite)]
    plain, last, decayed = (
        render(energy_document(energy_of(accumulate(folders, tmp_path / name, **how).past), name))
        for name, how in (
            ("plain", {"energy": "sum"}),
            ("last", {"energy": "sum", "last": 1}),
            ("decayed", {"energy": "abs", "decay": 0.5}),
        )
    )
    lost = "lost their protection"
    assert [lost in one for one in (plain, last, decayed)] == [True, False, False]
    assert "E = \\|Σ ΔW\\|, weighed (the last task only), over" in last
    assert "E = Σ \\|ΔW\\|, weighed (times 0.5 for each later task), over" in decayed


def test_a_dense_sum_does_not_claim_to_know_what_cancelled(dense: Past) -> None:
    report = energy_of(dense)
    assert report.total.cancelled is None
    assert "sum" in report.why_no_cancelled


def test_a_dense_past_of_absolute_energy_still_knows_what_cancelled(
    three_tasks: list[Path], tmp_path: Path, factored: Past
) -> None:
    path = tmp_path / "abs.safetensors"
    accumulate(three_tasks, path, store="dense", energy="abs")
    report: EnergyReport = energy_of(read_past(path))
    expected = energy_of(factored).total.cancelled
    assert report.kind == "abs"
    assert report.total.cancelled == pytest.approx(expected, rel=1e-5)


def test_root_of_squares_is_read_as_it_was_accumulated(
    three_tasks: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "rss.safetensors"
    accumulate(three_tasks, path, energy="rss")
    parts = [updates_of(random_factors(seed)) for seed in range(3)]
    square = sum(float(part[name].square().sum()) for part in parts for name in MODULES)
    found = energy_of(read_past(path)).total.concentration.norm
    assert found == pytest.approx(square**0.5, rel=1e-6)
