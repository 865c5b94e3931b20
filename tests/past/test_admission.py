"""What must not come into a past is refused, and the file stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.errors import AdapterError, NonFiniteError, PastError, ShapeError
from ella_cli.past import accumulate
from tests.past.conftest import STORES, MakeAdapter


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


@pytest.mark.parametrize("store", STORES)
def test_adapters_of_other_shapes_are_refused(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate([make_adapter("one", 1)], path, store=store)
    other = make_adapter("two", 2, shapes={"model.layers.2.q": (37, 30)})
    with pytest.raises((ShapeError, PastError), match=r"model\.layers\.2\.q is \(37"):
        accumulate([other], path)


def test_an_update_that_is_not_finite_leaves_the_file_as_it_was(
    three: list[Path], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three, path)
    before = path.read_bytes()
    broken = make_adapter("broken", 9, change=lambda t: {k: v * float("nan") for k, v in t.items()})
    # Finite in float64, but W_past is of float32.
    huge = make_adapter("huge", 9, alpha=1e45)
    for folder in (broken, huge):
        with pytest.raises(NonFiniteError, match=r"model\.layers\.2\.q"):
            accumulate([folder], path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_sum_that_f32_cannot_hold_does_not_take_the_olds_place(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"

    def large(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: torch.full_like(one, 1e19) for key, one in tensors.items()}

    first, second = (
        make_adapter(f"t{i}", shapes={"m.q": (1, 1)}, rank=1, alpha=1.0 + i, change=large)
        for i in range(2)
    )
    accumulate([first], path, store="dense")
    # 1e38 and 2e38, and then 1.5e38: each by itself can be held.
    accumulate([second], path)
    before = path.read_bytes()
    third = make_adapter("t2", shapes={"m.q": (1, 1)}, rank=1, alpha=1.5, change=large)
    with pytest.raises(NonFiniteError, match=r"m\.q: the sum of the updates is larger than f32"):
        accumulate([third], path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_that_could_not_be_read_again_does_not_take_the_olds_place(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:2], path)
    before = path.read_bytes()

    def written_wrong(change: object, temporary: Path) -> None:
        temporary.write_bytes(before[:-1])

    monkeypatch.setattr("ella_cli.past.accumulation.write_factored", written_wrong)
    with pytest.raises(PastError, match=r"stays as it was, .*tensors end at byte"):
        accumulate(three[2:], path)
    assert path.read_bytes() == before


def test_what_is_no_text_in_a_folders_name_is_shown_as_such(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    odd = make_adapter("plain").rename(Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9")))
    past = accumulate([odd], tmp_path / "w").past
    assert past.tasks[0].name == "caf\ufffd"


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_damaged_past_of_matrices_is_not_added_to(
    where: float, three: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    accumulate(three[:2], path, store="dense")
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    content[header + int(where * (len(content) - header))] ^= 1
    path.write_bytes(content)
    with pytest.raises(PastError, match="does not match its checksum"):
        accumulate(three[2:], path)
    assert path.read_bytes() == content
