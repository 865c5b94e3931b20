"""ΔW read from adapter folders equals peft's own, and what has another ΔW is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ella_cli.adapter import read_adapter
from ella_cli.errors import AdapterError


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.point = nn.Conv2d(3, 8, 1)
        self.conv1d = nn.Conv1d(3, 8, 2)
        self.linear = nn.Linear(5, 7)
        self.embedding = nn.Embedding(11, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16,
            bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip


def save(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    lora = {"init_lora_weights": False, "r": 4, "lora_alpha": 6} | lora
    with warnings.catch_warnings():
        # peft announces that it saves embeddings along, and uses what transformers deprecates.
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, LoraConfig(**lora)).to(dtype)
        peft_model.save_pretrained(folder)
    return peft_model


def deltas_by_peft(peft_model: PeftModel) -> dict[str, Tensor]:
    """ΔW as (out, in): embeddings and Conv1D turned, convolutions laid flat."""
    found = {}
    for name, module in peft_model.base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        delta = module.get_delta_weight("default")
        base = module.get_base_layer()
        turned = isinstance(base, nn.Embedding) or type(base).__name__ == "Conv1D"
        found[name] = (delta.T if turned else delta.flatten(1)).detach().double()
    return found


CASES = {
    "linear": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "conv1d-of-gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "embedding-and-convolutions": (
        Mixed,
        {"target_modules": ["conv", "point", "conv1d", "linear", "embedding"]},
    ),
    "embedding-of-a-language-model": (llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 3},
            "alpha_pattern": {r"layers\.1\..*": 5, "q_proj": 7},
            "use_rslora": True,
        },
    ),
    "dropout-and-gaussian": (
        llama,
        {"target_modules": ["q_proj"], "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_what_peft_would_add_to_the_weight(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, lora = CASES[case]
    peft_model = save(build(), tmp_path, **lora)
    expected = deltas_by_peft(peft_model)

    adapter = read_adapter(tmp_path)

    assert set(adapter.names) == set(expected)
    for name, delta in expected.items():
        update = adapter.update(name)
        product = update.scale * update.b.double() @ update.a.double()
        torch.testing.assert_close(product, delta, rtol=1e-6, atol=1e-7)
        assert update.shape == adapter.shape(name) == tuple(delta.shape)
        assert update.norm == pytest.approx(float(delta.norm()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_any_float_type_are_read_as_f32(dtype: torch.dtype, tmp_path: Path) -> None:
    save(llama(), tmp_path, dtype=dtype, target_modules=["q_proj"])
    stored = load_file(tmp_path / "adapter_model.safetensors")
    adapter = read_adapter(tmp_path)
    name = adapter.names[0]
    update = adapter.update(name)
    assert update.b.dtype == update.a.dtype == torch.float32
    assert stored[f"base_model.model.{name}.lora_A.weight"].dtype == dtype
    assert torch.equal(update.a, stored[f"base_model.model.{name}.lora_A.weight"].float())


def test_copies_of_untrained_embeddings_are_left_out_and_named(tmp_path: Path) -> None:
    save(llama(), tmp_path, target_modules=["embed_tokens"])
    adapter = read_adapter(tmp_path)
    assert adapter.names == ("model.embed_tokens",)
    assert all("base_layer" in name for name in adapter.left_out)


def test_layers_come_in_their_order(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    save(model, tmp_path, r=1, target_modules=[str(i) for i in range(12)])
    assert read_adapter(tmp_path).names == tuple(str(i) for i in range(12))


def test_the_digest_knows_content_and_scale_and_not_the_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    peft_model = save(llama(), tmp_path / "a", target_modules=["q_proj"])
    peft_model.save_pretrained(tmp_path / "b")
    digest = read_adapter(tmp_path / "a").digest
    assert len(digest) == 64
    assert read_adapter(tmp_path / "b").digest == digest

    change_config(tmp_path / "b", lora_alpha=7)
    assert read_adapter(tmp_path / "b").digest != digest

    change_config(tmp_path / "b", lora_alpha=6)
    change_tensors(tmp_path / "b", lambda tensors: {k: v + 1 for k, v in tensors.items()})
    assert read_adapter(tmp_path / "b").digest != digest


def test_the_task_is_the_manifests_or_the_folders_name(tmp_path: Path) -> None:
    save(llama(), tmp_path / "folder", target_modules=["q_proj"])
    assert read_adapter(tmp_path / "folder").task == "folder"
    assert read_adapter(tmp_path / "folder").manifest is None
    manifest = {"format": 1, "task": "amazon", "lambda": 10.0}
    (tmp_path / "folder" / "ella.json").write_text(json.dumps(manifest))
    adapter = read_adapter(tmp_path / "folder")
    assert adapter.task == "amazon"
    assert adapter.manifest is not None
    assert adapter.manifest["lambda"] == 10.0


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_tensors(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save(llama(), folder, target_modules=["q_proj"])
    return folder


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "PiSSA"),
        ({"init_lora_weights": "olora"}, "OLoRA"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_another_kind_of_update_made_by_peft_is_refused_by_name(
    lora: dict[str, Any], named: str, tmp_path: Path
) -> None:
    save(llama(), tmp_path, **{"target_modules": ["q_proj"]} | lora)
    with pytest.raises(AdapterError, match=named):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"kasa_config": {"beta": 1}}, "KaSA"),
        ({"r": "eight"}, "eight"),
        ({"r": 5}, "rank 5"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern"),
        ({"rank_pattern": {"a?" * 40 + "a" * 40: 4}}, "rank_pattern"),
        ({"rank_pattern": {"(a|a)" * 40: 4}}, "rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"q{99999999999}": 4}}, "rank_pattern"),
        # Compiles alone, but not where peft puts it.
        ({"rank_pattern": {"(?i)q_proj": 4}}, "rank_pattern"),
        ({"rank_pattern": {".*.*.*X": 4}}, "rank_pattern"),
        ({"rank_pattern": {f".*layers.{i}": 4 for i in range(17)}}, "more than 16 repeats"),
        ({"rank_pattern": {"q_proj": float("nan")}}, "rank_pattern"),
        ({"lora_alpha": float("inf")}, "lora_alpha is 'inf'"),
        ({"lora_alpha": 10**400}, "lora_alpha is '1000"),
        ({"lora_alpha": 1e308, "r": 0}, "rank 0"),
    ],
)
def test_a_config_that_does_not_describe_the_update_is_refused(
    changes: dict[str, Any], said: str, plain: Path, tmp_path: Path
) -> None:
    for file in plain.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    change_config(tmp_path, **changes)
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path)


def test_a_factor_without_its_partner_and_a_foreign_tensor_are_refused(
    plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text((plain / "adapter_config.json").read_text())
    tensors = load_file(plain / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file({first: tensors[first]}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="not both"):
        read_adapter(tmp_path)
    save_file(
        tensors | {"classifier.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match=r"classifier\.weight"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "pattern", [r".*(?:self_attn|mlp)\.(?:q_proj|v_proj)", r"^(?!.*vision).*(?:q|k)_proj", "q_proj"]
)
def test_patterns_that_end_are_taken(pattern: str, plain: Path, tmp_path: Path) -> None:
    for file in plain.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    change_config(tmp_path, alpha_pattern={pattern: 2})
    (first, *_) = read_adapter(plain).sources.values()
    (changed, *_) = read_adapter(tmp_path).sources.values()
    assert changed.scale == pytest.approx(2 / first.rank)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("curvature/0/x", "no name of a module"),
        ("q" * 201, "no name of a module"),
        ("q\x1b[2J", "unusable name"),
        ("q" * 500, "unusable name"),
    ],
)
def test_a_module_of_an_impossible_name_is_refused(
    module: str, said: str, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text((plain / "adapter_config.json").read_text())
    factors = {
        f"{module}.lora_A.weight": torch.ones(8, 4),
        f"{module}.lora_B.weight": torch.ones(4, 8),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=said):
        read_adapter(tmp_path)


def test_a_task_of_an_impossible_name_is_refused(plain: Path, tmp_path: Path) -> None:
    for file in plain.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    for task in ("x" * 501, "evil\x1b]0;pwned\x07"):
        (tmp_path / "ella.json").write_text(json.dumps({"format": 1, "task": task}))
        with pytest.raises(AdapterError, match="names the task"):
            read_adapter(tmp_path)


def test_grouped_convolutions_are_refused_where_peft_has_no_delta(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    save(model, tmp_path, target_modules=["0"])
    with pytest.raises(AdapterError, match="grouped"):
        read_adapter(tmp_path)


def test_a_folder_that_is_no_adapter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match="pickled"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(AdapterError, match="not a sound safetensors file"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not JSON"):
        read_adapter(tmp_path)
