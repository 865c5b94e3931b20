"""Directions beside a curvature's factors: cut with them, and believed only where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import CURVATURE, read_curvature, write_curvature
from ella_cli.errors import AdapterError, PastError
from ella_cli.past import accumulate, read_past
from ella_cli.past.curvatures import fit_curvatures
from tests.past.conftest import MakeAdapter
from tests.past.test_curvature import Q, falling, of_adapter, three

__all__ = ["three"]


def test_cut_columns_take_their_part_of_the_directions_along(three: list[Path]) -> None:
    whole = read_curvature(read_adapter(three[0]))
    assert whole is not None
    cut = whole.truncated(2, 1)
    own, less = whole.kronecker(Q), cut.kronecker(Q)
    assert own.directions is not None
    assert less.directions is not None
    assert own.directions.shape == (5, 3, 2)
    assert (less.u.shape[1], less.v.shape[1]) == (2, 1)
    assert torch.equal(less.directions, own.directions[:, :2, :1])
    assert cut.nbytes < whole.nbytes
    assert (whole.basis, cut.basis) == (3, 2)


def test_where_columns_are_cut_directions_take_no_more_room_than_what_is_left(
    three: list[Path],
) -> None:
    adapter = read_adapter(three[0])
    plain = read_curvature(adapter)
    assert plain is not None
    drawn = torch.Generator().manual_seed(0)
    modules = {}
    for name in plain.names:
        one = plain.kronecker(name)
        # In two columns of U and one of V, which both have more.
        many = torch.randn(200, 2, 1, generator=drawn)
        modules[name] = replace(one, directions=many)
    write_curvature(adapter.path, modules, plain.record)
    whole = read_curvature(read_adapter(three[0]))
    assert whole is not None
    # As measured, however many: that they fit was seen to then.
    assert whole.directions == 200
    own = whole.kronecker(Q).directions
    assert own is not None
    for ranks in ((2, 1), (1, 1), (2, 2)):
        cut = whole.truncated(*ranks)
        held = [cut.kronecker(name) for name in cut.names]
        factors = sum(one.u.numel() + one.v.numel() for one in held)
        count = cut.directions
        basis = sum(one.directions[0].numel() for one in held)  # type: ignore[index]
        # As many as have room, and no fewer.
        assert count < 200
        assert count * basis <= factors < (count + 1) * basis
        # The largest come first.
        kept = cut.kronecker(Q).directions
        assert kept is not None
        assert torch.equal(kept, own[:count, : ranks[0], : ranks[1]])


def test_no_direction_goes_while_the_room_is_for_all(make_adapter: MakeAdapter) -> None:
    folder = falling(make_adapter("task", 0), 0, 0.2, 0.0)
    plain = read_curvature(read_adapter(folder))
    assert plain is not None
    modules = {
        name: replace(plain.kronecker(name), directions=torch.ones(4, 2, 1)) for name in plain.names
    }
    write_curvature(folder, modules, plain.record)
    whole = read_curvature(read_adapter(folder))
    assert whole is not None
    (same,) = fit_curvatures([whole], whole.nbytes)
    assert same is whole
    # Every room down to what 95 % of the traces take.
    (least,) = fit_curvatures([whole], 0)
    assert least.nbytes < whole.nbytes
    for room in range(least.nbytes, whole.nbytes):
        (less,) = fit_curvatures([whole], room)
        assert less.nbytes <= room
        assert less.directions == 4


def test_a_past_says_that_directions_lost_columns(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = []
    for i in range(12):
        folder = falling(make_adapter(f"task{i}", i), i, 0.2, 0.0)
        plain = read_curvature(read_adapter(folder))
        assert plain is not None
        modules = {
            name: replace(plain.kronecker(name), directions=torch.ones(4, 8, 7))
            for name in plain.names
        }
        write_curvature(folder, modules, plain.record)
        folders.append(folder)
    notes = accumulate(folders, tmp_path / "w").notes
    kept = {one.basis for one in read_past(tmp_path / "w").curvatures}
    assert max(kept) < 8
    said = f"directions of 12 tasks in {min(kept)} columns instead of 8"
    assert any(said in note for note in notes), notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({f"{Q}.R": torch.zeros(5, 9, 2)}), "not what a curvature holds"),
        (lambda t: t.update({f"{Q}.R": torch.zeros(5, 3)}), "not what a curvature holds"),
        (lambda t: t.update({f"{Q}.R": torch.zeros(6, 3, 2)}), "not what a curvature holds"),
        (lambda t: t.pop(f"{Q}.U"), "not what a curvature holds"),
        (lambda t: t[f"{Q}.R"].fill_(torch.nan), "does not match its digest"),
    ],
)
def test_directions_that_do_not_belong_are_refused(
    change: Callable[[dict[str, Tensor]], object], said: str, three: list[Path]
) -> None:
    path = three[0] / CURVATURE
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(AdapterError, match=said):
        of_adapter(three[0])


@pytest.mark.parametrize("version", [2, 99, -5])
def test_directions_of_a_version_that_has_none_are_refused(
    version: int, three: list[Path], tmp_path: Path
) -> None:
    accumulate(three, tmp_path / "w")
    for path, key, error in (
        (three[0] / CURVATURE, "ella_curvature", AdapterError),
        (tmp_path / "w", "ella_past", PastError),
    ):
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()[key])
        (record["curvature"][0] if key == "ella_past" else record)["version"] = version
        save_file(load_file(path), path, metadata={key: json.dumps(record)})
        with pytest.raises(error, match=f"version {version}"):
            read_curvature(read_adapter(three[0])) if error is AdapterError else read_past(path)
