"""The file holds the sum it should, in either store, and says where every part came from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ella_cli.adapter import read_adapter
from ella_cli.errors import PastError, SettingsError, StorageError
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.record import EnergyKind
from tests.past.conftest import SHAPES, STORES, MakeAdapter, close, delta_of, energy_of


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


def test_factors_made_into_matrices_keep_the_sum_to_float32_rounding(
    three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path, store="factored")
    past = accumulate([], path, store="dense").past
    assert past.store == "dense"
    for name in past.names:
        truth = sum(delta_of(folder, name) for folder in three)  # (M, N) f64
        error = (past.delta(name).double() - truth).norm() / truth.norm()
        assert error < 1e-6


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


def test_a_whole_model_that_is_added_to_others_is_told(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """A first one is the model; from the second on the sum is none that was trained."""
    stages = [
        make_adapter(task, seed, manifest={"task": task, "method": "seqlora"})
        for seed, task in enumerate(("dbpedia", "amazon"))
    ]
    assert accumulate(stages[:1], tmp_path / "w.safetensors").notes == ()
    (note,) = accumulate(stages[1:], tmp_path / "w.safetensors").notes
    assert "amazon is of method seqlora, a model by itself and no term of a sum" in note


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
    (tmp_path / ".w.safetensors.abcdefgh.tmp").write_bytes(b"half")
    (tmp_path / ".other.safetensors.abcdefgh.tmp").write_bytes(b"not ours")
    accumulate(three, tmp_path / "w.safetensors")
    assert [file.name for file in tmp_path.glob(".*.tmp")] == [".other.safetensors.abcdefgh.tmp"]


def test_a_folder_that_cannot_be_made_is_said(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        accumulate(three, tmp_path / "file" / "w.safetensors")


def test_checksums_are_plain_sha256(three: list[Path], tmp_path: Path) -> None:
    past = accumulate(three, tmp_path / "w.safetensors", store="dense").past
    for name in past.names:
        content = past.delta(name).contiguous().numpy().tobytes()
        assert past.record.checksums[f"{name}.delta"] == hashlib.sha256(content).hexdigest()


def test_a_link_stays_one_and_what_it_names_is_changed(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    real = tmp_path / "big" / "w.safetensors"
    link = tmp_path / "w.safetensors"
    link.symlink_to(real)
    accumulate(three[:2], link, store="factored")
    assert link.is_symlink()
    past = accumulate(three[2:], link, store="factored").past
    assert link.is_symlink()
    assert [task.name for task in read_past(real).tasks] == ["task0", "task1", "task2"]
    for task, folder in zip(past.tasks, three, strict=True):
        assert (real.parent / task.folder).resolve() == folder.resolve()


def test_another_files_temporary_is_left_alone(three: list[Path], tmp_path: Path) -> None:
    others = [tmp_path / ".w.safetensors.abcdefgh.tmp", tmp_path / ".w.next.abcdefgh.tmp"]
    for other in others:
        other.write_bytes(b"not yet whole")
    own, folder = tmp_path / ".w.abcdefgh.tmp", tmp_path / ".w.12345678.tmp"
    own.write_bytes(b"killed")
    folder.mkdir()
    accumulate(three, tmp_path / "w")
    assert all(other.exists() for other in (*others, folder))
    assert not own.exists()


def test_a_window_and_a_decay_can_be_undone(three: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "w"
    plain = accumulate(three, path, store="factored").past
    accumulate([], path, last=2, decay=0.5)
    again = accumulate([], path, last=0, decay=1).past
    assert again.digest == plain.digest


def test_a_decay_by_one_that_was_once_written_down_is_left_as_it_is(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w"
    with monkeypatch.context() as once:
        # As an earlier ella kept it.
        once.setattr(
            "ella_cli.past.accumulation.energy_of", lambda *_: EnergyKind("sum", None, 1.0)
        )
        accumulate(three[:2], path, store="dense")
    assert read_past(path).record.energy.decay == 1
    past = accumulate(three[2:], path, decay=1).past
    assert (len(past.tasks), past.record.energy.decay) == (3, 1)


def test_wishes_that_nothing_can_be_done_with_are_refused(
    three: list[Path], tmp_path: Path
) -> None:
    accumulate(three, tmp_path / "w", store="factored")
    with pytest.raises(SettingsError, match="--shrink with no adapter"):
        accumulate([], tmp_path / "w", energy="abs", shrink=100)
