from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.errors import SettingsError, StorageError
from ella_cli.inspect.difference import difference
from ella_cli.past import Past, accumulate
from tests.inspect.conftest import MODULES, WriteAdapter, random_factors, updates_of


def test_two_adapters_differ_by_the_norm_of_their_updates_difference(
    write_adapter: WriteAdapter,
) -> None:
    report = difference(write_adapter("a", 1), write_adapter("b", 2))
    one, two = updates_of(random_factors(1)), updates_of(random_factors(2))
    for module in report.modules:
        a, b = one[module.name], two[module.name]
        assert module.difference == pytest.approx(float((a - b).norm()), rel=1e-6)
        assert module.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())))
    a, b = (torch.cat([u[n].flatten() for n in MODULES]) for u in (one, two))
    assert report.total is not None
    assert report.total.difference == pytest.approx(float((a - b).norm()), rel=1e-6)
    assert report.total.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), rel=1e-6)
    assert report.total.relative == pytest.approx(
        float((a - b).norm() / max(a.norm(), b.norm())), rel=1e-6
    )


def test_what_is_not_there_is_no_file(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no "):
        difference(write_adapter("a", 1), tmp_path / "nope")


def test_equal_contents_are_the_same_whatever_the_folder(write_adapter: WriteAdapter) -> None:
    report = difference(write_adapter("a", 1), write_adapter("b", 1))
    assert report.same
    assert report.modules == ()


def test_one_past_in_two_stores_differs_by_rounding_only(factored: Past, dense: Past) -> None:
    assert factored.path is not None
    assert dense.path is not None
    report = difference(factored.path, dense.path)
    assert not report.same
    assert report.total is not None
    assert report.total.relative == pytest.approx(0, abs=1e-6)
    assert {name: (a, b) for name, a, b in report.facts}["stored"] == ("factored", "dense")


def test_a_past_with_one_task_more_differs_by_that_task(
    three_tasks: list[Path], tmp_path: Path, summed: dict[str, Tensor]
) -> None:
    paths = [tmp_path / "two.safetensors", tmp_path / "three.safetensors"]
    accumulate(three_tasks[:2], paths[0], store="factored")
    accumulate(three_tasks, paths[1], store="factored")
    last = updates_of(random_factors(2))
    for module in difference(*paths).modules:
        assert module.difference == pytest.approx(float(last[module.name].norm()), rel=1e-6)


def test_modules_of_one_side_only_are_listed(write_adapter: WriteAdapter) -> None:
    wider = {**MODULES, "model.layers.0.mlp.up_proj": (8, 20)}
    report = difference(write_adapter("a"), write_adapter("b", factors=random_factors(1, wider)))
    assert report.only_in_b == ("model.layers.0.mlp.up_proj",)
    assert report.only_in_a == ()


def test_a_past_is_not_compared_with_an_adapter(
    write_adapter: WriteAdapter, factored: Past
) -> None:
    assert factored.path is not None
    with pytest.raises(SettingsError, match="a folder and"):
        difference(write_adapter("a"), factored.path)
