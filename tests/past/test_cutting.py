"""Curvatures cut to the room there is: leading columns stay, and what protects stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import read_curvature
from ella_cli.errors import AdapterError
from ella_cli.past import accumulate, read_past
from tests.past.conftest import SHAPES, STORES, MakeAdapter
from tests.past.test_curvature import Q, falling

ROOM = sum(4 * rows * columns for rows, columns in SHAPES.values())


@pytest.mark.parametrize("floor", [0.0, 0.04])
@pytest.mark.parametrize("store", STORES)
def test_curvatures_that_fall_off_take_no_more_than_the_matrices(
    store: str, floor: float, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    counts = [0.5, *[1.0] * 11]
    folders = [falling(make_adapter(f"task{i}", i), i, 0.2, floor, counts[i]) for i in range(12)]
    path = tmp_path / "w"
    least: list[int] = []
    notes: tuple[str, ...] = ()
    for i, folder in enumerate(folders):
        done = accumulate([folder], path, store=store)  # type: ignore[arg-type]
        notes = done.notes
        past = read_past(path)
        past.verify()
        assert sum(one.nbytes for one in past.curvatures) <= ROOM
        assert len(past.curvatures) == i + 1
        widths = [one.entry(one.keys[Q][0]).shape[1] for one in past.curvatures]
        least.append(min(widths))
    assert least[0] == 8
    assert least == sorted(least, reverse=True)
    assert 1 <= least[-1] < 8
    # As many as there is room for, and the note says so.
    each = sum(2 * (rows + columns) for rows, columns in SHAPES.values())
    assert each * 12 * (max(widths) + 1) > ROOM
    assert any(f"up to {max(widths)} eigenvectors a factor" in note for note in notes), notes
    assert [weight for _, weight in past.weighed_curvatures] == counts
    # A cut one is still the adapter's own.
    for folder in folders[:2]:
        with pytest.raises(AdapterError, match="already"):
            accumulate([folder], path)
    # What is left are the leading columns, and the record knows the share of the others.
    for folder, kept, width in zip(folders, past.curvatures, widths, strict=True):
        whole = read_curvature(read_adapter(folder))
        assert whole is not None
        for name in SHAPES:
            u, v = whole.kronecker(name).u, whole.kronecker(name).v
            less = kept.kronecker(name)
            assert torch.equal(less.u, u[:, :width])
            assert torch.equal(less.v, v[:, :width])
            for share, found, factor in zip(
                kept.record.dropped[name], (less.u_floor, less.v_floor), (u, v), strict=True
            ):
                gone = float(factor[:, width:].double().square().sum())
                assert share == pytest.approx(gone / float(factor.double().square().sum()))
                # What was cut off is spread evenly.
                assert found == pytest.approx(floor + gone / len(factor), rel=1e-6)
            assert less.trace == pytest.approx(whole.kronecker(name).trace, rel=1e-6)
    # The adapters keep all of theirs: a past made anew of fewer tasks has them again.
    accumulate(folders[:2], tmp_path / "two", store=store)  # type: ignore[arg-type]
    assert read_past(tmp_path / "two").curvatures[0].entry(f"curvature/0/{Q}.U").shape[1] == 8


def test_those_that_fall_off_make_room_for_those_that_do_not(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    ratios = [1.0] * 2 + [0.2] * 8
    folders = [falling(make_adapter(f"t{i}", i), i, ratio) for i, ratio in enumerate(ratios)]
    accumulate(folders, tmp_path / "w")
    kept = read_past(tmp_path / "w").curvatures
    assert sum(one.nbytes for one in kept) <= ROOM
    assert [one.entry(one.keys[Q][0]).shape[1] for one in kept] == [8] * 2 + [1] * 8


@pytest.mark.parametrize(("ratio", "width"), [(1.0, 8), (0.5, 3)])
def test_curvatures_keep_what_protects_whatever_the_matrices_take(
    ratio: float, width: int, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    for i in range(12):
        accumulate([falling(make_adapter(f"task{i}", i), i, ratio)], tmp_path / "w")
    kept = read_past(tmp_path / "w").curvatures
    assert sum(one.nbytes for one in kept) > ROOM
    # Past three columns there is 0.25³ = 1.6 % of the trace, past two 6 %.
    keys = [(one, key) for one in kept for pair in one.keys.values() for key in pair]
    assert {one.entry(key).shape[1] for one, key in keys} == {width}
    for one in kept:
        shares = [share for pair in one.record.dropped.values() for share in pair]
        assert sum(shares) / max(len(shares), 1) <= 0.05
