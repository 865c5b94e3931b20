"""Curvatures cut to the room there is: leading columns stay, and what protects stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import read_curvature, write_curvature
from ella_cli.errors import AdapterError
from ella_cli.past import accumulate, read_past
from ella_cli.past.curvatures import fit_curvatures
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
        widths, of_c = (
            [one.entry(one.keys[Q][side]).shape[1] for one in past.curvatures] for side in (0, 1)
        )
        least.append(min(widths))
    assert least[0] == 8
    assert least == sorted(least, reverse=True)
    assert 1 <= least[-1] < 8
    # As many as there is room for, and the note says so.
    each = sum(2 * (rows + columns) for rows, columns in SHAPES.values())
    assert each * 12 * (max(widths) + 1) > ROOM
    said = f"up to {max(widths)} eigenvectors of a G and {max(of_c)} of a C"
    assert any(said in note for note in notes), notes
    assert [weight for _, weight in past.weighed_curvatures] == counts
    # A cut one is still the adapter's own.
    for folder in folders[:2]:
        with pytest.raises(AdapterError, match="already"):
            accumulate([folder], path)
    # What is left are the leading columns, and the record knows the share of the others.
    for folder, kept, *ranks in zip(folders, past.curvatures, widths, of_c, strict=True):
        whole = read_curvature(read_adapter(folder))
        assert whole is not None
        for name in SHAPES:
            u, v = whole.kronecker(name).u, whole.kronecker(name).v
            less = kept.kronecker(name)
            assert torch.equal(less.u, u[:, : ranks[0]])
            assert torch.equal(less.v, v[:, : ranks[1]])
            floors = less.u_floor, less.v_floor
            for share, found, factor, width in zip(
                kept.record.dropped[name], floors, (u, v), ranks, strict=True
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
    ratios = [1.0] * 2 + [0.1] * 8
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
    for one in kept:
        of_u, of_v = (
            {one.entry(pair[side]).shape[1] for pair in one.keys.values()} for side in (0, 1)
        )
        assert of_u == {width}
        assert of_v <= {width, width + 1}
        g, c = ([pair[side] for pair in one.record.dropped.values()] for side in (0, 1))
        assert sum(g) / max(len(g), 1) <= 0.05
        # Of C no more goes than of G.
        assert sum(c) <= sum(g) * 1.001


def test_inputs_need_fewer_columns_than_outputs(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folders = []
    for i in range(12):
        # Inputs fall off as those of a model do, faster than gradients at outputs.
        folder = falling(make_adapter(f"task{i}", i), i, 0.7)
        whole = read_curvature(read_adapter(folder))
        assert whole is not None
        modules = {
            name: replace(whole.kronecker(name), v=whole.kronecker(name).v * 0.5 ** torch.arange(8))
            for name in whole.names
        }
        write_curvature(folder, modules, whole.record)
        folders.append(folder)
    accumulate(folders, tmp_path / "w")
    for one in read_past(tmp_path / "w").curvatures:
        (of_u, of_v), *_ = (tuple(one.entry(key).shape[1] for key in k) for k in one.keys.values())
        assert of_v < of_u <= 8
        g, c = ([pair[side] for pair in one.record.dropped.values()] for side in (0, 1))
        assert sum(c) <= sum(g) * 1.001


def test_a_curvature_of_no_module_is_left_as_it_is(make_adapter: MakeAdapter) -> None:
    one = read_curvature(read_adapter(falling(make_adapter("task", 0), 0, 0.5)))
    assert one is not None
    none = replace(one, keys={})
    less, kept = fit_curvatures([one, none], one.nbytes - 1)
    assert less.nbytes < one.nbytes
    assert kept is none
