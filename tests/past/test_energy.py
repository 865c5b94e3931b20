"""The energy is its formula, in either store; the model always has the whole sum."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.errors import PastError, SettingsError
from ella_cli.past import accumulate
from tests.past.conftest import (
    SHAPES,
    STORES,
    MakeAdapter,
    close,
    delta_of,
    energy_of,
)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("energy", ["sum", "abs", "rss"])
@pytest.mark.parametrize("decay", [None, 0.5])
def test_energies_are_their_formulas(
    store: str, energy: str, decay: float | None, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:2], path, store=store, energy=energy, decay=decay)
    past = accumulate(three[2:], path, store=store).past
    assert past.energy == energy
    weights = (0.25, 0.5, 1.0) if decay else (1.0, 1.0, 1.0)
    for name in past.names:
        deltas = [w * delta_of(f, name) for w, f in zip(weights, three, strict=True)]
        expected = {
            "sum": sum(deltas).abs(),
            "abs": sum(d.abs() for d in deltas),
            "rss": sum(d.square() for d in deltas).sqrt(),
        }[energy]
        close(energy_of(past, name), expected)
        close(past.delta(name), sum(delta_of(folder, name) for folder in three))


@pytest.mark.parametrize("energy", ["sum", "abs"])
def test_only_the_last_tasks_count_for_the_energy_and_all_for_the_model(
    energy: str, three: list[Path], tmp_path: Path
) -> None:
    past = accumulate(three, tmp_path / "w.safetensors", last=2, energy=energy).past
    assert past.store == "factored"
    for name in past.names:
        deltas = [delta_of(folder, name) for folder in three]
        late = deltas[1:]
        expected = sum(late).abs() if energy == "sum" else sum(d.abs() for d in late)
        close(energy_of(past, name), expected)
        close(past.delta(name), sum(deltas))
    with pytest.raises(SettingsError, match="tasks apart"):
        accumulate(three, tmp_path / "x.safetensors", last=2, store="dense")


def test_shrinking_adds_each_update_divided_by_what_its_past_holds(
    three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    past = accumulate(three, path, shrink=2.0).past
    assert past.store == "dense"
    squared = [0.0, 0.0, 0.0]
    for name in past.names:
        total = torch.zeros(SHAPES[name], dtype=torch.float64)
        for index, folder in enumerate(three):
            shrunk = delta_of(folder, name) / (1 + 2.0 * total.square())
            squared[index] += float(shrunk.square().sum())
            total += shrunk
        close(past.delta(name), total)
    for task, square in zip(past.tasks, squared, strict=True):
        assert task.shrink == 2.0
        assert task.update_norm == pytest.approx(square**0.5, rel=1e-5)
    with pytest.raises(PastError, match="shrunk"):
        accumulate([], path, drop=["task0"])
    with pytest.raises(SettingsError, match="must be dense"):
        accumulate(three, tmp_path / "x.safetensors", shrink=2.0, store="factored")
    with pytest.raises(SettingsError, match="--shrink"):
        accumulate(three, tmp_path / "x.safetensors", shrink=-1.0)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("energy", ["sum", "abs", "rss"])
def test_an_update_is_shrunk_by_the_energy_as_it_stood_before_it_decays(
    store: str, energy: str, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:2], path, store=store, energy=energy, decay=0.5)
    past = accumulate(three[2:], path, shrink=2.0).past
    for name in past.names:
        first, second, third = (delta_of(folder, name) for folder in three)
        before = {
            "sum": 0.5 * first + second,
            "abs": 0.5 * first.abs() + second.abs(),
            "rss": (0.25 * first.square() + second.square()).sqrt(),
        }[energy]
        shrunk = third / (1 + 2.0 * before.square())
        close(past.delta(name), first + second + shrunk)
        after = {
            "sum": 0.5 * before + shrunk,
            "abs": 0.5 * before + shrunk.abs(),
            "rss": (0.25 * before.square() + shrunk.square()).sqrt(),
        }[energy]
        close(energy_of(past, name), after.abs())


@pytest.mark.parametrize("store", STORES)
def test_what_is_shrunk_comes_in_last(
    store: str, three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:2], path, store=store)
    kept = path.read_bytes()
    with pytest.raises(SettingsError, match="task0 is not the last task") as error:
        accumulate([], path, replace={"task0": three[2]}, shrink=2.0)
    assert "--drop task0" in (error.value.hint or "")
    assert path.read_bytes() == kept
    past = accumulate(
        [make_adapter("other", 9)], path, replace={"task1": three[2]}, shrink=2.0
    ).past
    assert [task.shrink for task in past.tasks] == [None, 2.0, 2.0]
    for name in past.names:
        first, third = delta_of(three[0], name), delta_of(three[2], name)
        second = third / (1 + 2.0 * first.square())
        other = delta_of(tmp_path / "other", name)
        added = other / (1 + 2.0 * (first + second).square())
        close(past.delta(name), first + second + added)


def test_the_energy_of_factors_can_be_changed_later(three: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store="factored")
    past = accumulate([], path, energy="rss").past
    assert past.energy == "rss"
    with pytest.raises(SettingsError, match="nothing to do"):
        accumulate([], path, energy="rss")
    with pytest.raises(SettingsError, match="nothing to do"):
        accumulate([], tmp_path / "new.safetensors")
    with pytest.raises(SettingsError, match="decay"):
        accumulate([], path, decay=1.5)
