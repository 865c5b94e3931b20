"""How much a task counts travels with its curvature, and weighs it in the penalty."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import CURVATURE
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.errors import AdapterError
from ella_cli.kernels import Kronecker
from ella_cli.past import Past, accumulate, compact, read_past
from ella_cli.past.export import export_dense
from tests.past.conftest import STORES, MakeAdapter
from tests.past.test_curvature import Q, falling, measured, of_adapter, product, use_of


def _change_record(folder: Path, old: str, new: str) -> None:
    """By hand, in the header of an adapter's curvature."""
    file = TensorFile.open(folder / CURVATURE, AdapterError)
    text = file.metadata["ella_curvature"].replace(old, new)
    assert text != file.metadata["ella_curvature"]
    tensors = {name: file.read(name) for name in file.entries}
    save_file(tensors, folder / CURVATURE, {"format": "pt", "ella_curvature": text})


@pytest.mark.parametrize("store", STORES)
def test_importance_weighs_the_curvatures_beside_decay(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    counts = (0.25, 1.0, 3.0)
    folders = [
        measured(make_adapter(f"task{i}", i), 100 + i, importance=one)
        for i, one in enumerate(counts)
    ]
    each = [product([of_adapter(folder)]) for folder in folders]
    past = accumulate(folders, tmp_path / "w", decay=0.5, store=store).past  # type: ignore[arg-type]
    past.verify()
    assert (past.record.version, [one.version for one in past.record.curvature]) == (5, [4, 3, 4])
    expected = sum(
        weight * count * one
        for weight, count, one in zip((0.25, 0.5, 1), counts, each, strict=True)
    )
    torch.testing.assert_close(product(past.curvature(Q)), expected, rtol=1e-5, atol=1e-5)
    # Directions too: their basis is U.
    for term, folder, weight in zip(past.curvature(Q), folders, (0.0625, 0.5, 3.0), strict=True):
        own = of_adapter(folder)
        assert own.directions is not None
        assert term.directions is not None
        k, columns = own.directions.shape[1:]

        def moved(one: Kronecker, k: int = k, columns: int = columns) -> Tensor:
            assert one.directions is not None
            return one.u[:, :k] @ one.directions @ one.v[:, :columns].T

        torch.testing.assert_close(moved(term), weight**0.5 * moved(own), rtol=1e-5, atol=1e-5)
    if store == "factored":
        held = Past.of([read_adapter(folder) for folder in folders], decay=0.5)
        assert held.digest == past.digest


@pytest.mark.parametrize("store", STORES)
def test_a_curvature_measured_anew_takes_the_place_of_the_old(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [measured(make_adapter(f"task{i}", i), 100 + i) for i in range(2)]
    before = accumulate(folders, tmp_path / "w", store=store).past  # type: ignore[arg-type]
    assert not any(before.lacks(read_adapter(folder)) for folder in folders)
    measured(folders[0], 100, importance=0.5)
    assert [before.lacks(read_adapter(folder)) for folder in folders] == [True, False]
    done = accumulate(folders[:1], tmp_path / "w")
    assert "task0 is in already; its curvature was replaced by the one measured since" in done.notes
    past = read_past(tmp_path / "w")
    past.verify()
    assert [weight for _, weight in past.weighed_curvatures] == [0.5, 1.0]
    assert torch.equal(past.delta(Q), before.delta(Q))
    assert not any(past.lacks(read_adapter(folder)) for folder in folders)
    with pytest.raises(AdapterError, match="already"):
        accumulate(folders[:1], tmp_path / "w")


def test_a_curvature_of_another_rank_is_measured_anew_and_one_that_was_cut_is_not(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [falling(make_adapter(f"task{i}", i), i, 0.2) for i in range(12)]
    done = accumulate(folders, tmp_path / "w")
    assert any(", so it was cut: " in note for note in done.notes)
    assert not any(done.past.lacks(read_adapter(folder)) for folder in folders)
    with pytest.raises(AdapterError, match="already"):
        accumulate(folders[:1], tmp_path / "w")
    falling(folders[0], 0, 0.2, width=5)
    assert [done.past.lacks(read_adapter(folder)) for folder in folders] == [True] + [False] * 11
    accumulate(folders[:1], tmp_path / "w")
    assert not any(read_past(tmp_path / "w").lacks(read_adapter(folder)) for folder in folders)


def test_importance_stays_through_every_change_of_the_file(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [
        measured(make_adapter(f"task{i}", i), 100 + i, importance=one)
        for i, one in enumerate((0.5, 0.25, 0.125))
    ]
    accumulate(folders, tmp_path / "w")
    first = read_past(tmp_path / "w").first(2)
    assert first is not None
    assert [weight for _, weight in first.weighed_curvatures] == [0.5, 0.25]
    compact(tmp_path / "w")
    export_dense(read_past(tmp_path / "w"), tmp_path / "out")
    copy = read_past(tmp_path / "out" / "wpast.safetensors")
    copy.verify()
    assert [weight for _, weight in copy.weighed_curvatures] == [0.5, 0.25, 0.125]
    accumulate(folders, tmp_path / "v")
    accumulate([], tmp_path / "v", drop=["task1"])
    kept = accumulate([], tmp_path / "v", energy="curvature", last=1).past
    assert [weight for _, weight in kept.weighed_curvatures] == [0.0, 0.125]


def test_importance_is_part_of_what_a_past_is(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folder = measured(make_adapter("one"), 1)
    before = accumulate([folder], tmp_path / "before").past.digest
    measured(folder, 1, importance=0.5)
    assert accumulate([folder], tmp_path / "after").past.digest != before


@pytest.mark.parametrize("place", ["adapter", "past"])
def test_importance_changed_by_hand_is_noticed(
    place: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = measured(make_adapter("one"), 1, importance=0.5)
    accumulate([folder], tmp_path / "w")
    path = folder / CURVATURE if place == "adapter" else tmp_path / "w"
    data = path.read_bytes()
    assert data.count(b'\\"importance\\":0.5') == 1
    path.write_bytes(data.replace(b'\\"importance\\":0.5', b'\\"importance\\":0.9'))
    use = use_of(place, [folder], tmp_path)
    with pytest.raises(AdapterError, match="does not match its digest"):
        use()


@pytest.mark.parametrize("importance", ["0", "-1", "NaN", "1e999"])
def test_an_importance_that_is_none_is_refused(
    importance: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = measured(make_adapter("one"), 1, importance=0.5)
    _change_record(folder, '"importance":0.5', f'"importance":{importance}')
    with pytest.raises(AdapterError, match="no sound record"):
        accumulate([folder], tmp_path / "w")


def test_an_importance_of_a_version_that_has_none_is_refused(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = measured(make_adapter("one"), 1, importance=0.5)
    _change_record(folder, '"version":4', '"version":3')
    with pytest.raises(AdapterError, match="version 3, which has no importance"):
        accumulate([folder], tmp_path / "w")
