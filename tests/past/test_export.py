"""Plain peft answers the same with an export as with the adapters themselves."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.errors import PastError, SettingsError, StorageError
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.export import export_adapter, export_dense
from tests.past.answers import answers_of_peft, answers_with, load, logits
from tests.past.conftest import MakeAdapter


def test_the_exported_adapter_answers_as_all_adapters_together(
    tiny_model: Path, two: list[Path], past: Past, tmp_path: Path
) -> None:
    expected = answers_of_peft(tiny_model, two)
    assert not torch.allclose(expected, logits(load(tiny_model)), atol=1e-2)

    done = export_adapter(past, tmp_path / "sum")

    torch.testing.assert_close(
        answers_with(tiny_model, tmp_path / "sum"), expected, rtol=1e-4, atol=1e-5
    )
    assert done.modules == ()
    assert "the sum itself" in done.exactness
    again = read_adapter(tmp_path / "sum")
    assert {again.sources[name].scale for name in again.names} == {1.0}
    for name in past.names:
        update = again.update(name)
        torch.testing.assert_close(update.b @ update.a, past.delta(name))


@pytest.mark.parametrize("store", ["factored", "dense"])
def test_a_cut_rank_is_the_best_one_and_its_error_is_stated(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [make_adapter(f"t{i}", i) for i in range(3)]
    past = accumulate(folders, tmp_path / "w", store=store).past
    done = export_adapter(past, tmp_path / "cut", max_rank=4)
    again = read_adapter(tmp_path / "cut")
    for module in done.modules:
        assert again.rank(module.name) == module.rank == 4
        delta = past.delta(module.name).double()
        update = again.update(module.name)
        error = float((delta - update.b.double() @ update.a.double()).norm() / delta.norm())
        assert module.relative == pytest.approx(error, rel=1e-4)
        values = torch.linalg.svdvals(delta)
        assert error == pytest.approx(float(values[4:].norm() / values.norm()), rel=1e-4)
    worst = max(module.relative for module in done.modules)
    assert f"{worst:.2g}" in done.exactness
    assert done.exactness in (tmp_path / "cut" / "README.md").read_text()
    assert export_adapter(past, tmp_path / "whole", max_rank=11).modules == () or store == "dense"


def test_a_dense_past_has_no_exact_adapter(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    past = accumulate([make_adapter("a", 0)], tmp_path / "w", store="dense").past
    with pytest.raises(PastError, match="full rank"):
        export_adapter(past, tmp_path / "out")
    with pytest.raises(SettingsError, match="max-rank is 0"):
        export_adapter(past, tmp_path / "out", max_rank=0)


@pytest.mark.parametrize("energy", ["sum", "abs"])
@pytest.mark.parametrize("last", [None, 1])
def test_the_dense_copy_is_the_same_past(
    energy: str, last: int | None, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [make_adapter("a", 0), make_adapter("b", 1)]
    past = accumulate(folders, tmp_path / "w", energy=energy, last=last, store="factored").past
    export_dense(past, tmp_path / "f32")
    export_dense(past, tmp_path / "bf16", dtype="bfloat16")
    full = read_past(tmp_path / "f32" / "wpast.safetensors")
    half = read_past(tmp_path / "bf16" / "wpast.safetensors")
    assert full.store == half.store == "dense"
    for name in past.names:
        operand = past.operand(name)
        energy_matrix = operand if isinstance(operand, Tensor) else operand.dense()
        torch.testing.assert_close(full.delta(name), past.delta(name))
        torch.testing.assert_close(full.operand(name), energy_matrix)
        assert torch.equal(half.delta(name), full.delta(name).to(torch.bfloat16).float())
        assert half.operand(name).dtype == torch.bfloat16
    if last is None:
        with pytest.raises(PastError, match="round again"):
            accumulate([make_adapter("c", 2)], tmp_path / "bf16" / "wpast.safetensors")


def test_a_dense_copy_knows_where_its_tasks_came_from(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [make_adapter("a", 0), make_adapter("b", 1)]
    accumulate(folders, tmp_path / "w", store="factored")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "w").symlink_to(tmp_path / "w")
    export_dense(read_past(tmp_path / "linked" / "w"), tmp_path / "far/away")
    left = accumulate([], tmp_path / "far/away/wpast.safetensors", drop=["a"]).past
    assert [task.name for task in left.tasks] == ["b"]


def test_what_was_rounded_does_not_pass_for_exact(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    past = accumulate([make_adapter("a"), make_adapter("b", 1)], tmp_path / "w").past
    export_dense(past, tmp_path / "half", dtype="bfloat16")
    half = read_past(tmp_path / "half" / "wpast.safetensors")
    with pytest.raises(PastError, match="is a bf16 copy"):
        export_dense(half, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    export_dense(half, tmp_path / "again", dtype="bfloat16")


def test_convolutions_and_embeddings_go_back_to_peft_in_their_shapes(tmp_path: Path) -> None:
    from tests.test_adapter import Mixed, deltas_by_peft, save

    torch.manual_seed(0)
    targets = ["conv", "point", "conv1d", "linear", "embedding"]
    first = save(Mixed(), tmp_path / "a", target_modules=targets)
    past = accumulate([tmp_path / "a"], tmp_path / "w", store="factored").past
    export_adapter(past, tmp_path / "sum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        again = PeftModel.from_pretrained(Mixed(), tmp_path / "sum")
    expected = deltas_by_peft(first)
    for name, delta in deltas_by_peft(again).items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-6)


def test_nothing_is_written_over(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    past = accumulate([make_adapter("a", 0)], tmp_path / "w").past
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    for call in (export_adapter, export_dense):
        with pytest.raises(StorageError, match="not empty"):
            call(past, tmp_path / "out")
    empty = accumulate([], tmp_path / "w", drop=["a"]).past
    with pytest.raises(PastError, match="no task"):
        export_adapter(empty, tmp_path / "new")
    with pytest.raises(PastError, match="no task"):
        export_dense(empty, tmp_path / "new")


def test_the_card_names_tasks_base_and_exactness(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folders = [
        make_adapter("a", 0, manifest={"task": "dbpedia", "lambda": 1e4}, task_type="CAUSAL_LM"),
        make_adapter("b", 1, manifest={"task": "amazon"}),
    ]
    past = accumulate(folders, tmp_path / "w").past
    export_adapter(past, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "base_model: org/base", "library_name: peft", "dbpedia → amazon", "10000", past.digest,
        "AutoModelForCausalLM", "the sum itself",
    ):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card


def test_the_card_unpacks_a_base_that_transformers_knows_by_no_name(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    past = accumulate([make_adapter("a", base="smollm2")], tmp_path / "w").past
    export_adapter(past, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'load_base("smollm2").model' in card
    assert 'from_pretrained("smollm2")' not in card
