"""A task taken out is gone, and one put in its place is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ella_cli.adapter import read_adapter
from ella_cli.errors import AdapterError, PastError
from ella_cli.past import accumulate
from tests.past.conftest import STORES, MakeAdapter, close, delta_of, energy_of


def test_a_task_dropped_from_factors_was_never_there(three: list[Path], tmp_path: Path) -> None:
    accumulate(three, tmp_path / "a.safetensors", store="factored")
    dropped = accumulate([], tmp_path / "a.safetensors", drop=["task1"]).past
    others = accumulate([three[0], three[2]], tmp_path / "b.safetensors", store="factored").past
    assert dropped.digest == others.digest
    assert [task.name for task in dropped.tasks] == ["task0", "task2"]
    ours, theirs = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    dropped.verify()


@pytest.mark.parametrize("energy", ["sum", "abs"])
def test_a_task_dropped_from_matrices_is_gone_to_rounding(
    energy: str, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    accumulate(three, path, store="dense", energy=energy)
    done = accumulate([], path, drop=["task1"])
    others = accumulate(
        [three[0], three[2]], tmp_path / "b.safetensors", store="dense", energy=energy
    ).past
    assert "fp32 rounding" in done.notes[0]
    for name in others.names:
        close(done.past.delta(name), others.delta(name))
        torch.testing.assert_close(
            energy_of(done.past, name), energy_of(others, name), rtol=1e-3, atol=5e-3
        )


def test_nothing_is_taken_out_of_roots_that_are_rounded(three: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store="dense", energy="rss")
    before = path.read_bytes()
    with pytest.raises(PastError, match="lost what is small beside task1"):
        accumulate([], path, drop=["task1"])
    assert path.read_bytes() == before


def test_a_dense_past_needs_the_very_adapter_to_take_it_out(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store="dense")
    moved = three[1].rename(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="gone"):
        accumulate([], path, drop=["task1"])
    make_adapter("task1", 77)
    with pytest.raises(AdapterError, match="not what was added"):
        accumulate([], path, drop=["task1"])
    past = accumulate([], path, drop=["task1"], taken_from=moved).past
    close(
        past.delta("model.layers.2.q"), sum(delta_of(three[i], "model.layers.2.q") for i in (0, 2))
    )


@pytest.mark.parametrize("store", STORES)
def test_a_replaced_task_keeps_its_place_and_name(
    store: str, three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store=store)
    better = make_adapter("better", 9)
    past = accumulate([], path, replace={"task1": better}, store=store).past
    assert [task.name for task in past.tasks] == ["task0", "task1", "task2"]
    assert past.tasks[1].digest == read_adapter(better).digest
    for name in past.names:
        close(past.delta(name), sum(delta_of(f, name) for f in (three[0], better, three[2])))


def test_a_strangers_folder_may_be_called_as_another_task(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path)
    stranger = make_adapter("elsewhere/task2", 9)
    done = accumulate([], path, replace={"task1": stranger})
    assert [task.name for task in done.past.tasks] == ["task0", "task1", "task2"]
    assert not any("kept as" in note for note in done.notes)


def test_a_past_emptied_of_its_tasks_can_be_filled_again(three: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:1], path)
    assert accumulate([], path, drop=["task0"]).past.names == ()
    assert accumulate(three[:1], path).past.names == tuple(read_adapter(three[0]).names)
