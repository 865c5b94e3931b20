"""The file holds the sum it should, in either store, whatever came in and went out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.errors import (
    AdapterError,
    NonFiniteError,
    PastError,
    SettingsError,
    ShapeError,
    StorageError,
)
from ella_cli.kernels import Factors
from ella_cli.past import Past, accumulate, read_past
from tests.past.conftest import SHAPES, MakeAdapter, delta_of

STORES = ("factored", "dense")


def energy_of(past: Past, name: str) -> Tensor:
    operand = past.operand(name)
    return (operand.dense() if isinstance(operand, Factors) else operand).abs()


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def three(make_adapter: MakeAdapter) -> list[Path]:
    return [make_adapter(f"task{i}", i, alpha=i + 1.0) for i in range(3)]


@pytest.mark.parametrize("store", STORES)
def test_the_past_is_the_sum_of_all_updates_with_their_scales(
    store: str, three: list[Path], tmp_path: Path
) -> None:
    past = accumulate(three, tmp_path / "w.safetensors", store=store).past
    assert past.names == ("model.layers.2.q", "model.layers.2.v", "model.layers.10.q")
    for name in past.names:
        expected = sum(delta_of(folder, name) for folder in three)
        assert past.shape(name) == SHAPES[name]
        close(past.delta(name), expected)
        close(energy_of(past, name), expected.abs())
        assert past.delta(name).dtype == torch.float32


@pytest.mark.parametrize("store", STORES)
def test_one_by_one_and_all_at_once_are_the_same_past(
    store: str, three: list[Path], tmp_path: Path
) -> None:
    at_once = accumulate(three, tmp_path / "a.safetensors", store=store).past
    for folder in three:
        one_by_one = accumulate([folder], tmp_path / "b.safetensors", store=store).past
    for name in at_once.names:
        close(one_by_one.delta(name), at_once.delta(name))
    if store == "factored":
        assert one_by_one.digest == at_once.digest


def test_a_past_in_memory_equals_the_file(three: list[Path], tmp_path: Path) -> None:
    held = Past.of([read_adapter(folder) for folder in three])
    written = accumulate(three, tmp_path / "w.safetensors", store="factored").past
    assert held.digest == written.digest
    assert held.names == written.names
    assert [task.name for task in held.tasks] == [task.name for task in written.tasks]
    for name in held.names:
        assert torch.equal(held.delta(name), written.delta(name))
    assert Past.of([]).names == ()


@pytest.mark.parametrize("store", STORES)
def test_the_safetensors_library_reads_the_file(
    store: str, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    past = accumulate(three, path, store=store).past
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
    for name in past.names:
        if store == "dense":
            assert torch.equal(tensors[f"{name}.delta"], past.delta(name))
        else:
            stored = load_file(three[1] / "adapter_model.safetensors")
            assert torch.equal(
                tensors[f"1.{name}.B"], stored[f"base_model.model.{name}.lora_B.weight"]
            )


def test_dense_to_file_to_dense_is_the_identity_to_the_bit(
    three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    before = accumulate(three, path, store="dense").past
    matrices = {name: before.delta(name).clone() for name in before.names}
    bytes_before = path.read_bytes()
    after = read_past(path)
    assert all(torch.equal(after.delta(name), matrices[name]) for name in after.names)
    assert path.read_bytes() == bytes_before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_stay_in_their_own_type(
    dtype: torch.dtype, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = make_adapter("half", 0, dtype=dtype)
    path = tmp_path / "w.safetensors"
    past = accumulate([folder], path, store="factored").past
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    past.verify()
    close(past.delta("model.layers.2.q"), delta_of(folder, "model.layers.2.q"))


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


@pytest.mark.parametrize("energy", ["sum", "abs", "rss"])
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


def test_the_same_factors_are_refused_under_any_name_unless_forced(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store="factored")
    before = path.read_bytes()
    copy = make_adapter("copy", 1, alpha=2.0)
    with pytest.raises(AdapterError, match="already, as task1"):
        accumulate([copy], path)
    with pytest.raises(AdapterError, match="already, as copy"):
        accumulate([copy, copy], tmp_path / "x.safetensors")
    assert path.read_bytes() == before
    assert not (tmp_path / "x.safetensors").exists()
    past = accumulate([copy], path, force=True, store="factored").past
    assert [task.name for task in past.tasks] == ["task0", "task1", "task2", "copy"]


def test_a_second_adapter_of_a_task_is_refused_or_kept_under_another_name(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    first = make_adapter("a", 0, manifest={"task": "amazon"})
    second = make_adapter("b", 1, manifest={"task": "amazon"})
    accumulate([first], path, store="factored")
    with pytest.raises(AdapterError, match="another adapter for the task amazon"):
        accumulate([second], path)
    done = accumulate([second], path, force=True, store="factored")
    assert [task.name for task in done.past.tasks] == ["amazon", "amazon-2"]


def test_fingerprints_decide_about_the_base_model_and_names_where_there_are_none(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    ours = {"task": "one", "base": {"model": "a", "fingerprint": "f" * 64}}
    accumulate([make_adapter("one", 1, manifest=ours)], path)
    renamed = {"task": "two", "base": {"model": "b", "fingerprint": "f" * 64}}
    accumulate([make_adapter("two", 2, manifest=renamed)], path)
    other = {"task": "three", "base": {"model": "a", "fingerprint": "e" * 64}}
    with pytest.raises(AdapterError, match="eeeeeeeeeeee"):
        accumulate([make_adapter("three", 3, manifest=other)], path)
    accumulate([make_adapter("four", 4, base="/home/someone/A/")], path)
    with pytest.raises(AdapterError, match="trained on other/model"):
        accumulate([make_adapter("five", 5, base="other/model")], path)
    past = accumulate([tmp_path / "five"], path, force=True).past
    assert past.base.model == "a"


def test_the_record_tells_where_every_part_came_from(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    manifest = {"task": "amazon", "lambda": 1e4, "past": {"digest": None, "tasks": ["dbpedia"]}}
    folder = make_adapter("stages/02-amazon", 0, manifest=manifest, task_type="CAUSAL_LM")
    done = accumulate([folder], tmp_path / "w.safetensors")
    (task,) = done.past.tasks
    deltas = torch.cat([delta_of(folder, name).flatten() for name in done.past.names])
    assert (task.name, task.lam, task.rank, task.scale) == ("amazon", 1e4, 2, 1.5)
    assert task.digest == read_adapter(folder).digest
    assert task.update_norm == pytest.approx(float(deltas.norm()), rel=1e-6)
    assert task.folder == "stages/02-amazon"
    assert task.date.endswith("+00:00")
    assert done.past.base.task_type == "CAUSAL_LM"
    assert done.notes == ("amazon was trained on top of dbpedia, not in this past",)


def test_modules_that_only_some_tasks_adapt_are_kept_apart(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    wide = make_adapter("wide", 0)
    narrow = make_adapter("narrow", 1, shapes={"model.layers.2.v": (11, 29), "lm_head": (5, 7)})
    for store in STORES:
        past = accumulate([wide, narrow], tmp_path / f"{store}.safetensors", store=store).past
        close(past.delta("model.layers.2.q"), delta_of(wide, "model.layers.2.q"))
        close(past.delta("lm_head"), delta_of(narrow, "lm_head"))
    past = accumulate([wide, narrow], tmp_path / "last.safetensors", last=1).past
    assert float(energy_of(past, "model.layers.2.q").sum()) == 0


@pytest.mark.parametrize("store", STORES)
def test_adapters_of_other_shapes_are_refused(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate([make_adapter("one", 1)], path, store=store)
    other = make_adapter("two", 2, shapes={"model.layers.2.q": (37, 30)})
    with pytest.raises((ShapeError, PastError), match=r"model\.layers\.2\.q is \(37"):
        accumulate([other], path)


def test_factors_turn_into_matrices_when_they_are_no_longer_smaller(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    # (37 + 29) · 2 numbers a task against 37 · 29: the ninth task makes factors the larger.
    folders = [make_adapter(f"t{i}", i, shapes={"q": (37, 29)}) for i in range(9)]
    stores = [accumulate([folder], path).past.store for folder in folders]
    assert stores == ["factored"] * 8 + ["dense"]
    with pytest.raises(SettingsError, match="dense already"):
        accumulate([make_adapter("late", 99, shapes={"q": (37, 29)})], path, store="factored")
    done = accumulate([make_adapter("later", 98, shapes={"q": (37, 29)})], path)
    assert done.factored_bytes is None
    assert "dense" in done.store_line
    with pytest.raises(PastError, match="cannot become abs"):
        accumulate([], path, energy="abs")


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


def test_a_past_emptied_of_its_tasks_can_be_filled_again(three: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:1], path)
    assert accumulate([], path, drop=["task0"]).past.names == ()
    assert accumulate(three[:1], path).past.names == tuple(read_adapter(three[0]).names)


def test_an_update_that_is_not_finite_leaves_the_file_as_it_was(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path)
    before = path.read_bytes()
    broken = make_adapter("broken", 9, change=lambda t: {k: v * float("nan") for k, v in t.items()})
    with pytest.raises(NonFiniteError, match=r"model\.layers\.2\.q"):
        accumulate([broken], path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_convolutions_and_embeddings_keep_what_they_are(tmp_path: Path) -> None:
    b, a = torch.randn(8, 2, 1, 1), torch.randn(2, 3, 3, 3)
    folder = tmp_path / "mixed"
    folder.mkdir()
    tensors = {
        "base_model.model.conv.lora_A.weight": a,
        "base_model.model.conv.lora_B.weight": b,
        "base_model.model.wte.lora_embedding_A": torch.randn(2, 32),
        "base_model.model.wte.lora_embedding_B": torch.randn(6, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for store in STORES:
        past = accumulate([folder], tmp_path / f"{store}.safetensors", store=store).past
        assert past.layer("conv").kernel == (3, 3)
        assert past.layer("wte").kind == "embedding"
        assert past.shape("wte") == (6, 32)
        close(past.delta("conv"), b.flatten(1).double() @ a.flatten(1).double())
        past.verify()


def test_what_a_killed_accumulation_left_is_cleared_away(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / ".w.safetensors.abcd.tmp").write_bytes(b"half")
    (tmp_path / ".other.safetensors.abcd.tmp").write_bytes(b"not ours")
    accumulate(three, tmp_path / "w.safetensors")
    assert [file.name for file in tmp_path.glob(".*.tmp")] == [".other.safetensors.abcd.tmp"]


def test_a_folder_that_cannot_be_made_is_said(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        accumulate(three, tmp_path / "file" / "w.safetensors")


def test_checksums_are_plain_sha256(three: list[Path], tmp_path: Path) -> None:
    past = accumulate(three, tmp_path / "w.safetensors", store="dense").past
    for name in past.names:
        content = past.delta(name).contiguous().numpy().tobytes()
        assert past.record.checksums[f"{name}.delta"] == hashlib.sha256(content).hexdigest()
