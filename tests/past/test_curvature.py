"""Curvatures travel from adapters into the past, stay apart there, and leave with their task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import CURVATURE, read_curvature, write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.errors import AdapterError, PastError
from ella_cli.kernels import Kronecker
from ella_cli.past import Past, accumulate, compact, read_past
from ella_cli.past.export import export_dense
from tests.past.conftest import SHAPES, STORES, MakeAdapter

Q = "model.layers.2.q"


def measured(
    folder: Path, seed: int, names: Sequence[str] = tuple(SHAPES), importance: float = 1.0
) -> Path:
    """Random factors beside an adapter, as `ella train` would write them."""
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: Kronecker(
            torch.randn(SHAPES[name][0], 4, generator=generator),
            torch.randn(SHAPES[name][1], 3, generator=generator),
            # The second module has none, so that both kinds are met.
            u_floor=0.2 * (i != 1),
            v_floor=0.1 * (i != 1),
            directions=torch.randn(5, 3, 2, generator=generator) if i != 1 else None,
        )
        for i, name in enumerate(names)
    }
    adapter = read_adapter(folder)
    record = CurvatureRecord(adapter.digest, adapter.task, rows=8, importance=importance)
    write_curvature(folder, modules, record)
    return folder


def falling(
    folder: Path,
    seed: int,
    ratio: float,
    floor: float = 0.0,
    importance: float = 1.0,
    width: int = 8,
) -> Path:
    """`width` columns a factor, each `ratio` of the one before, as eigenvectors fall off."""
    adapter = read_adapter(folder)
    generator = torch.Generator().manual_seed(seed)
    fall = ratio ** torch.arange(width)
    modules = {
        name: Kronecker(
            torch.randn(rows, width, generator=generator) * fall,
            torch.randn(columns, width, generator=generator) * fall,
            floor,
            floor,
        )
        for name, (rows, columns) in SHAPES.items()
    }
    record = CurvatureRecord(adapter.digest, adapter.task, importance=importance)
    write_curvature(folder, modules, record)
    return folder


@pytest.fixture
def three(make_adapter: MakeAdapter) -> list[Path]:
    return [measured(make_adapter(f"task{i}", i), 100 + i) for i in range(3)]


def product(terms: Sequence[Kronecker]) -> Tensor:
    """Σ G ⊗ C in f64, whatever the terms and their order."""
    total = torch.zeros((), dtype=torch.float64)
    for term in terms:
        u, v = term.u.double(), term.v.double()
        g = u @ u.T + term.u_floor * torch.eye(len(u))
        c = v @ v.T + term.v_floor * torch.eye(len(v))
        total = total + torch.kron(g, c)
    return total


def of_adapter(folder: Path, name: str = Q) -> Kronecker:
    curvature = read_curvature(read_adapter(folder))
    assert curvature is not None
    return curvature.kronecker(name)


@pytest.mark.parametrize("store", STORES)
def test_a_past_holds_the_curvature_of_every_task(
    store: str, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w"
    accumulate(three[:1], path, store=store)  # type: ignore[arg-type]
    accumulate(three[1:], path)
    past = read_past(path)
    past.verify()
    assert past.store == store
    assert past.record.version == 4
    assert past.unmeasured == ()
    assert past.directions_size == (3, 5)
    for name in SHAPES:
        for held, folder in zip(past.curvature(name), three, strict=True):
            own = of_adapter(folder, name)
            if own.directions is None:
                assert held.directions is None
            else:
                assert held.directions is not None
                assert torch.equal(held.directions, own.directions)
        assert [term.task for term in past.curvature(name)] == [0, 1, 2]
        expected = product([of_adapter(folder, name) for folder in three])
        torch.testing.assert_close(product(past.curvature(name)), expected, rtol=1e-6, atol=1e-6)


def test_the_file_keeps_factors_to_bf16(make_adapter: MakeAdapter) -> None:
    folder = make_adapter("one")
    u, v = torch.randn(37, 4), torch.randn(29, 3)
    adapter = read_adapter(folder)
    write_curvature(folder, {Q: Kronecker(u, v)}, CurvatureRecord(adapter.digest, "one"))
    kept = of_adapter(folder)
    assert torch.equal(kept.u, u.to(torch.bfloat16).float())
    assert torch.equal(kept.v, v.to(torch.bfloat16).float())


def test_a_past_in_memory_equals_the_file(three: list[Path], tmp_path: Path) -> None:
    accumulate(three, tmp_path / "w")
    held = Past.of([read_adapter(folder) for folder in three])
    file = read_past(tmp_path / "w")
    assert held.digest == file.digest
    assert torch.equal(product(held.curvature(Q)), product(file.curvature(Q)))


@pytest.mark.parametrize("store", STORES)
def test_a_dropped_task_takes_its_curvature_along(
    store: str, three: list[Path], tmp_path: Path
) -> None:
    accumulate(three, tmp_path / "w", store=store)  # type: ignore[arg-type]
    accumulate([], tmp_path / "w", drop=["task1"])
    past = read_past(tmp_path / "w")
    assert len(past.curvatures) == 2
    expected = product([of_adapter(three[0]), of_adapter(three[2])])
    torch.testing.assert_close(product(past.curvature(Q)), expected, rtol=1e-6, atol=1e-6)


def test_last_and_decay_weigh_the_curvatures(three: list[Path], tmp_path: Path) -> None:
    each = [product([of_adapter(folder)]) for folder in three]
    for store in STORES:
        path = tmp_path / store
        accumulate(three, path, energy="curvature", decay=0.5, last=2, store=store)  # type: ignore[arg-type]
        past = read_past(path)
        assert past.energy == "curvature"
        assert past.coordinates == "sum"
        expected = 0.5 * each[1] + each[2]
        torch.testing.assert_close(product(past.curvature(Q)), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_one_is_added_with_a_word(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    bare = make_adapter("bare", 9)
    done = accumulate([three[0], bare], tmp_path / "w")
    assert any("bare: no curvature" in note and "ella measure" in note for note in done.notes)
    assert read_past(tmp_path / "w").unmeasured == ("bare",)
    # Measured later, the same adapter brings its curvature and nothing else.
    measured(bare, 5)
    again = accumulate([bare], tmp_path / "w")
    past = read_past(tmp_path / "w")
    assert again.added == ()
    assert [task.name for task in past.tasks] == ["task0", "bare"]
    assert past.unmeasured == ()
    assert not any("no curvature" in note for note in again.notes)
    with pytest.raises(AdapterError, match="already"):
        accumulate([bare], tmp_path / "w")


def test_curvatures_measured_in_another_way_are_named(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [make_adapter(f"task{i}", i) for i in range(3)]
    for i, (folder, shrinkage) in enumerate(zip(folders, (None, 0.05, 0.05), strict=True)):
        adapter = read_adapter(folder)
        record = CurvatureRecord(adapter.digest, adapter.task, shrinkage=shrinkage)
        terms = {name: Kronecker(torch.ones(m, 1), torch.ones(n, 1), 0.1 * i, 0.0)
                 for name, (m, n) in SHAPES.items()}  # fmt: skip
        write_curvature(folder, terms, record)
    alike = accumulate(folders[1:], tmp_path / "alike")
    assert not any("another way" in note for note in alike.notes)
    mixed = accumulate(folders, tmp_path / "mixed")
    (note,) = [note for note in mixed.notes if "another way" in note]
    assert "of task0 was" in note
    assert "that of task2" in note
    # What the record says travels with the factors.
    said = [one.record.shrinkage for one in read_past(tmp_path / "mixed").curvatures]
    assert said == [None, 0.05, 0.05]


def test_a_past_without_any_stays_a_file_of_version_1(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    done = accumulate([make_adapter("one")], tmp_path / "w")
    assert read_past(tmp_path / "w").record.version == 1
    assert done.notes == ()


def test_compaction_and_a_dense_copy_keep_the_curvatures(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    twice = [three[0], make_adapter("again", 0, alpha=6.0)]
    accumulate(twice, tmp_path / "w")
    before = product(read_past(tmp_path / "w").curvature(Q))
    compact(tmp_path / "w")
    past = read_past(tmp_path / "w")
    past.verify()
    assert torch.equal(product(past.curvature(Q)), before)
    export_dense(past, tmp_path / "out")
    copy = read_past(tmp_path / "out" / "wpast.safetensors")
    copy.verify()
    assert torch.equal(product(copy.curvature(Q)), before)


def use_of(place: str, adapters: list[Path], folder: Path) -> Callable[[], object]:
    """Reads all of the past `w`, or of the adapters."""
    if place == "past":
        return read_past(folder / "w").verify
    return partial(accumulate, adapters, folder / "other")


@pytest.mark.parametrize("place", ["adapter", "past"])
def test_a_floor_changed_by_hand_is_noticed(place: str, three: list[Path], tmp_path: Path) -> None:
    accumulate(three, tmp_path / "w")
    path = three[0] / CURVATURE if place == "adapter" else tmp_path / "w"
    data = path.read_bytes()
    assert b"[0.2,0.1]" in data
    # Of equal length, so that all else stays where it was.
    path.write_bytes(data.replace(b"[0.2,0.1]", b"[0.3,0.1]"))
    use = use_of(place, three, tmp_path)
    with pytest.raises(AdapterError, match="does not match its digest"):
        use()


@pytest.mark.parametrize("floor", ["-0.2", "NaN", "1e999", "null"])
def test_a_floor_that_is_none_is_refused(floor: str, three: list[Path], tmp_path: Path) -> None:
    file = TensorFile.open(three[0] / CURVATURE, AdapterError)
    text = file.metadata["ella_curvature"].replace("[0.2,0.1]", f"[{floor},0.1]")
    assert text != file.metadata["ella_curvature"]
    tensors = {name: file.read(name) for name in file.entries}
    metadata = {"format": "pt", "ella_curvature": text}
    save_file(tensors, three[0] / CURVATURE, metadata)
    with pytest.raises(AdapterError, match="no sound record"):
        accumulate(three, tmp_path / "w")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(coherence=math.nan), "no sound record"),
        (lambda r: r.update(shrinkage=math.inf), "no sound record"),
        (lambda r: r["dropped"].update({Q: [math.nan, 0]}), "no sound record"),
        (lambda r: r["floors"].update({"layers." + "9" * 5000: [0.1, 0.1]}), "its digest"),
    ],
)
def test_what_a_strangers_record_says_is_refused_in_words(
    change: Callable[[dict[str, Any]], object], words: str, three: list[Path], tmp_path: Path
) -> None:
    file = TensorFile.open(three[0] / CURVATURE, AdapterError)
    record = json.loads(file.metadata["ella_curvature"])
    change(record)
    tensors = {name: file.read(name) for name in file.entries}
    save_file(tensors, three[0] / CURVATURE, {"ella_curvature": json.dumps(record)})
    with pytest.raises(AdapterError, match=words):
        accumulate(three, tmp_path / "w")


@pytest.mark.parametrize("place", ["adapter", "past"])
def test_one_flipped_bit_is_noticed(place: str, three: list[Path], tmp_path: Path) -> None:
    accumulate(three, tmp_path / "w")
    path = three[0] / CURVATURE if place == "adapter" else tmp_path / "w"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # curvatures come last in a past
    path.write_bytes(data)
    use = use_of(place, three, tmp_path)
    with pytest.raises(AdapterError, match="does not match its digest"):
        use()
    assert not (tmp_path / "other").exists()


def test_a_curvature_of_something_else_is_refused(three: list[Path], tmp_path: Path) -> None:
    foreign = three[1] / CURVATURE
    foreign.write_bytes((three[0] / CURVATURE).read_bytes())
    with pytest.raises(AdapterError, match="another adapter"):
        accumulate([three[1]], tmp_path / "w")
    adapter = read_adapter(three[2])
    record = CurvatureRecord(adapter.digest, adapter.task)
    write_curvature(three[2], {Q: Kronecker(torch.ones(5, 1), torch.ones(29, 1))}, record)
    with pytest.raises(AdapterError, match=r"model\.layers\.2\.q is \(5, 29\)"):
        accumulate([three[2]], tmp_path / "w")
    write_curvature(three[2], {Q: Kronecker(torch.ones(37, 1), torch.ones(29, 1))},
                    replace(record, version=9))  # fmt: skip
    with pytest.raises(AdapterError, match="version 9"):
        accumulate([three[2]], tmp_path / "w")
    (three[2] / CURVATURE).write_bytes((three[0] / CURVATURE).read_bytes()[:50])
    with pytest.raises(AdapterError, match="not a sound safetensors file"):
        accumulate([three[2]], tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_numbers_that_are_not_finite_are_refused(three: list[Path], tmp_path: Path) -> None:
    adapter = read_adapter(three[0])
    write_curvature(
        three[0],
        {Q: Kronecker(torch.full((37, 1), torch.nan), torch.ones(29, 1))},
        CurvatureRecord(adapter.digest, adapter.task),
    )
    with pytest.raises(AdapterError, match="not finite"):
        accumulate([three[0]], tmp_path / "w")


def test_tensors_of_no_curvature_are_refused(three: list[Path], tmp_path: Path) -> None:
    accumulate(three, tmp_path / "w")
    with safe_open(tmp_path / "w", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "w")
    for extra in ("curvature/7/fc.U", f"curvature/0/{Q}.W", "curvature/x"):
        save_file(tensors | {extra: torch.ones(2, 2)}, tmp_path / "bad", metadata)
        with pytest.raises(PastError, match="curvature"):
            read_past(tmp_path / "bad")


def test_a_past_from_before_floors_is_read_and_goes_on(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    old = falling(make_adapter("old", 0), 0, 1.0)
    assert of_adapter(old).u_floor == 0
    record = accumulate([old], tmp_path / "w").past.record
    assert (record.version, record.curvature[0].version) == (2, 1)
    new = measured(make_adapter("new", 1), 1)
    past = accumulate([new], tmp_path / "w").past
    past.verify()
    assert (past.record.version, [one.version for one in past.record.curvature]) == (4, [1, 3])
    expected = product([of_adapter(old), of_adapter(new)])
    assert torch.equal(product(past.curvature(Q)), expected)
    assert accumulate([], tmp_path / "w", drop=["new"]).past.record.version == 2


def test_a_new_past_protects_by_curvature_where_all_have_measured_it(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    plain = make_adapter("plain", 9)
    assert accumulate(three, tmp_path / "all").past.energy == "curvature"
    assert accumulate([*three, plain], tmp_path / "some").past.energy == "sum"
    assert accumulate(three, tmp_path / "asked", energy="sum").past.energy == "sum"
    # A file keeps what it began with.
    assert accumulate([plain], tmp_path / "all").past.energy == "curvature"
    accumulate([plain], tmp_path / "old")
    assert accumulate(three, tmp_path / "old").past.energy == "sum"
