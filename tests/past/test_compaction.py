"""Compaction keeps the sum within its tolerance, and says what it cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.errors import PastError, SettingsError
from ella_cli.past import accumulate, compact, read_past
from tests.past.conftest import MakeAdapter, delta_of

SHAPES = {"q": (60, 50), "v": (20, 50)}


@pytest.fixture
def repeated(make_adapter: MakeAdapter, tmp_path: Path) -> tuple[Path, list[Path]]:
    """Eight tasks in the span of two: rank 16 in name, 4 in truth."""
    folders = []
    for i in range(8):
        folders.append(make_adapter(f"t{i}", i % 2, shapes=SHAPES, alpha=1.0 + i))
    path = tmp_path / "w.safetensors"
    accumulate(folders, path, store="factored")
    return path, folders


def test_rank_that_is_not_needed_goes_and_the_sum_stays(
    repeated: tuple[Path, list[Path]],
) -> None:
    path, folders = repeated
    before = {name: read_past(path).delta(name) for name in SHAPES}
    done = compact(path)
    assert done.bytes_after < done.bytes_before
    for module in done.modules:
        assert (module.rank_before, module.rank_after) == (16, 4)
        assert module.dropped < 1e-12
    past = read_past(path)
    past.verify()
    assert [task.name for task in past.tasks] == [folder.name for folder in folders]
    for name in SHAPES:
        relative = (past.delta(name) - before[name]).norm() / before[name].norm()
        assert relative < 1e-6


@pytest.mark.parametrize("tolerance", [0.05, 0.2, 0.5])
def test_the_error_is_what_is_reported_and_below_the_tolerance(
    tolerance: float, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    folders = [make_adapter(f"t{i}", i, shapes=SHAPES, alpha=4.0 * 0.3**i) for i in range(4)]
    accumulate(folders, path, store="factored")
    done = compact(path, tolerance=tolerance)
    for module in done.modules:
        expected = sum(delta_of(folder, module.name) for folder in folders)
        missed = float((done.past.delta(module.name).double() - expected).norm() / expected.norm())
        assert missed <= tolerance
        assert missed == pytest.approx(module.dropped**0.5, abs=1e-6)
        assert module.rank_after < module.rank_before
        # No smaller rank would have been enough.
        values = torch.linalg.svdvals(expected)
        shorter = values[module.rank_after - 1 :].norm() / values.norm()
        assert shorter > tolerance


def test_more_tasks_can_come_after_and_the_compacted_ones_stay_together(
    repeated: tuple[Path, list[Path]], make_adapter: MakeAdapter
) -> None:
    path, folders = repeated
    compact(path)
    late = make_adapter("late", 50, shapes=SHAPES)
    past = accumulate([late], path, store="factored").past
    assert len(past.tasks) == 9
    for name in SHAPES:
        expected = sum(delta_of(folder, name) for folder in [*folders, late])
        torch.testing.assert_close(past.delta(name).double(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(PastError, match="compacted together with 7 other tasks"):
        accumulate([], path, drop=["t3"])
    with pytest.raises(PastError, match="own energies are gone"):
        accumulate([], path, energy="abs")
    accumulate([], path, drop=["late"])


def test_what_cannot_get_smaller_is_left_as_it_was(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate([make_adapter("a", 0), make_adapter("b", 1)], path, store="factored")
    before = path.read_bytes()
    done = compact(path, tolerance=0)
    assert done.modules == ()
    assert done.bytes_before == done.bytes_after == path.stat().st_size
    assert path.read_bytes() == before


def test_only_plain_factors_can_be_compacted(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folder = make_adapter("a", 0)
    accumulate([folder], tmp_path / "dense", store="dense")
    accumulate([folder], tmp_path / "last", last=1)
    with pytest.raises(PastError, match="is dense"):
        compact(tmp_path / "dense")
    with pytest.raises(PastError, match="needs its tasks apart"):
        compact(tmp_path / "last")
    with pytest.raises(SettingsError, match="tolerance"):
        compact(tmp_path / "last", tolerance=1.0)
    with pytest.raises(PastError, match="no W_past file"):
        compact(tmp_path / "none")
