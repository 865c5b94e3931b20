"""Plain peft and transformers answer the same with an export as with the adapters themselves."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from ella_cli.adapter import read_adapter
from ella_cli.errors import ModelError, PastError, SettingsError, ShapeError, StorageError
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.export import export_adapter, export_dense, export_merged
from tests.past.conftest import MakeAdapter

TARGETS = {
    "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn", "c_proj"], "t5": ["q", "v"],
}  # fmt: skip


def load(folder: Path, **options: Any) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, **options)
    return model.eval()


def logits(model: torch.nn.Module) -> Tensor:
    ids = torch.arange(3, 15).view(2, 6)  # (S, L)
    config = model.config
    more = {"decoder_input_ids": ids[:, :4]} if config.is_encoder_decoder else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **more).logits  # (S, L, V)
    return found


def train_nothing(model: Path, folder: Path, seed: int, **lora: Any) -> Path:
    """A random adapter, saved by peft."""
    torch.manual_seed(seed)
    kind = AutoConfig.from_pretrained(model).model_type
    settings = {
        "target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2", "r": 3,
        "lora_alpha": 0.4, "init_lora_weights": False,
        "task_type": "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM",
    } | lora  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(load(model), LoraConfig(**settings)).save_pretrained(folder)
    return folder


@pytest.fixture
def two(tiny_model: Path, tmp_path: Path) -> list[Path]:
    first = train_nothing(tiny_model, tmp_path / "one", 1)
    # Ranks differ from task to task and from module to module.
    pattern = {TARGETS[AutoConfig.from_pretrained(tiny_model).model_type][0]: 2}
    second = train_nothing(
        tiny_model, tmp_path / "two", 2, r=1, rank_pattern=pattern, use_rslora=True
    )
    return [first, second]


@pytest.fixture
def past(two: list[Path], tmp_path: Path) -> Past:
    return accumulate(two, tmp_path / "w.safetensors", store="factored").past


def answers_of_peft(model: Path, adapters: list[Path]) -> Tensor:
    """Both adapters active at once: peft's own sum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = PeftModel.from_pretrained(load(model), adapters[0], adapter_name="a0")
        for index, folder in enumerate(adapters[1:], start=1):
            peft_model.load_adapter(folder, adapter_name=f"a{index}")
        peft_model.base_model.set_adapter([f"a{i}" for i in range(len(adapters))])
        return logits(peft_model)


def answers_with(model: Path, adapter: Path) -> Tensor:
    with warnings.catch_warnings():
        # Of peft's own calls into transformers; a missing or an unused key would still raise.
        warnings.filterwarnings("ignore", category=FutureWarning)
        return logits(PeftModel.from_pretrained(load(model), adapter))


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
def test_the_merged_model_answers_as_all_adapters_together(
    store: str, tiny_model: Path, two: list[Path], tmp_path: Path
) -> None:
    past = accumulate(two, tmp_path / f"{store}.safetensors", store=store).past
    # Several shards, tied weights and all.
    load(tiny_model).save_pretrained(tmp_path / "base", max_shard_size="30KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    export_merged(past, tmp_path / "base", tmp_path / "merged")
    expected = answers_of_peft(tiny_model, two)
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "merged" / "README.md").read_text().count("| ") > 2


def test_a_bf16_model_is_rounded_once(tiny_llama: Path, tmp_path: Path) -> None:
    folders = [train_nothing(tiny_llama, tmp_path / f"t{i}", i) for i in range(3)]
    past = accumulate(folders, tmp_path / "w.safetensors").past
    load(tiny_llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    export_merged(past, tmp_path / "base", tmp_path / "merged")
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    for key, weight in before.items():
        name = key.removesuffix(".weight")
        expected = weight
        if name in past.names:
            expected = (weight.double() + past.delta(name).double()).to(torch.bfloat16)
        assert torch.equal(after[key], expected)


def test_tokenizer_and_configs_come_along_and_other_weights_stay(
    tiny_llama: Path, tmp_path: Path
) -> None:
    past = accumulate([train_nothing(tiny_llama, tmp_path / "t", 0)], tmp_path / "w").past
    base = tmp_path / "base"
    load(tiny_llama).save_pretrained(base)
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    export_merged(past, base, tmp_path / "merged")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors", "README.md"} <= names
    assert "pytorch_model.bin" not in names


def test_a_base_saved_without_the_models_prefix_is_merged_all_the_same(
    tiny_gpt2: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    adapter = train_nothing(tiny_gpt2, tmp_path / "t", 0)
    past = accumulate([adapter], tmp_path / "w").past
    base = tmp_path / "base"
    load(tiny_gpt2).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    bare = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    save_file(bare, base / "model.safetensors", {"format": "pt"})
    export_merged(past, base, tmp_path / "merged")
    expected = answers_of_peft(tiny_gpt2, [adapter])
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_that_two_modules_share_is_not_merged(tiny_t5: Path, tmp_path: Path) -> None:
    past = accumulate(
        [train_nothing(tiny_t5, tmp_path / "t", 0, target_modules=["shared"])], tmp_path / "w"
    ).past
    with pytest.raises(ModelError, match="shares its weight"):
        export_merged(past, tiny_t5, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_bases_that_cannot_be_merged_say_why(
    tiny_llama: Path, tiny_gpt2: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    past = accumulate([train_nothing(tiny_llama, tmp_path / "t", 0)], tmp_path / "w").past
    with pytest.raises(ModelError, match=r"no config\.json"):
        export_merged(past, tmp_path, tmp_path / "merged")
    with pytest.raises(ModelError, match="no module model"):
        export_merged(past, tiny_gpt2, tmp_path / "merged")
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((tiny_llama / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        export_merged(past, base, tmp_path / "merged")
    (base / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
    (base / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ShapeError, match="q_proj is"):
        export_merged(past, base, tmp_path / "merged")
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    with pytest.raises(ModelError, match="quantised"):
        export_merged(past, base, tmp_path / "merged")
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["Nothing"]}))
    with pytest.raises(ModelError, match="cannot build"):
        export_merged(past, base, tmp_path / "merged")
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no usable files"):
        export_merged(past, base, tmp_path / "merged")


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
