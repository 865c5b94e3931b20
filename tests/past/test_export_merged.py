"""Plain transformers answers the same with a merged model as peft with all adapters."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ella_cli.config import RunSettings
from ella_cli.errors import ModelError, ShapeError
from ella_cli.model.base import load_base
from ella_cli.past import accumulate
from ella_cli.past.export import export_merged
from ella_cli.plan.skeleton import build_skeleton
from tests.past.answers import answers_of_peft, load, logits, train_nothing
from tests.past.conftest import MakeAdapter


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


def test_only_the_base_that_the_past_was_made_on_is_merged(
    tiny_model: Path, two: list[Path], tmp_path: Path
) -> None:
    base = load_base(str(tiny_model), dtype="float32", device="cpu")
    for folder in two:
        manifest = {"format": 1, "base": {"fingerprint": base.fingerprint}}
        (folder / "ella.json").write_text(json.dumps(manifest))
    past = accumulate(two, tmp_path / "w").past
    model = load(tiny_model)
    model.save_pretrained(tmp_path / "same", max_shard_size="30KB")
    export_merged(past, tmp_path / "same", tmp_path / "merged")
    # Loaded as float16 its values are others, and it is the same base.
    dtype = "float16" if base.kind == "decoder" else "float32"
    halved = load_base(str(tiny_model), dtype=dtype, device="cpu").fingerprint
    for folder in two:
        manifest = {"format": 1, "base": {"fingerprint": halved}}
        (folder / "ella.json").write_text(json.dumps(manifest))
    of_half = accumulate(two, tmp_path / "half").past
    export_merged(of_half, tmp_path / "same", tmp_path / "merged-half")
    # One weight of equal shape that the past does not touch.
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="the past was made on a base with"):
        export_merged(past, tmp_path / "other", tmp_path / "not-merged")
    assert not (tmp_path / "not-merged").exists()


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
    for damage in (
        {"architectures": ["Nothing"]}, {"architectures": ["TimmBackbone"]},
        {"architectures": ["pipeline"]}, {"hidden_size": "abc"}, {"num_attention_heads": 0},
    ):  # fmt: skip
        (base / "config.json").write_text(json.dumps(config | damage))
        with pytest.raises(ModelError, match="cannot build"):
            export_merged(past, base, tmp_path / "merged")


def test_a_folders_own_python_is_never_run(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = accumulate([train_nothing(tiny_llama, tmp_path / "t", 0)], tmp_path / "w").past
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {
        "AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel",
    }}  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError, match="cannot build"):
        export_merged(past, base, tmp_path / "merged")
    with pytest.raises(ModelError, match="cannot load"):
        load_base(str(base))
    with pytest.raises(ModelError, match="cannot read"):
        build_skeleton(RunSettings(model=str(base)), torch.float32)
    assert not (tmp_path / "ran").exists()
    index = {"weight_map": {"a": "../../evil.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no usable files"):
        export_merged(past, base, tmp_path / "merged")
