"""What loading a base model settles besides."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ella_cli.config import LoraFields, TrainSettings, resolve_settings
from ella_cli.errors import ModelError, SettingsError
from ella_cli.evaluate.decode import generate_answers, rank_labels
from ella_cli.model import source
from ella_cli.model.base import device_of, load_base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers
from ella_cli.tasks.prompt import Prompt


def test_prompts_are_cut_to_the_positions_a_model_has(tiny_gpt2: Path, tiny_t5: Path) -> None:
    gpt2 = load_base(str(tiny_gpt2), dtype="float32", device="cpu")
    encoder = gpt2.encoder(2000, 30)
    question = Prompt("Say it.\n", "a long text " * 400, "\nAnswer:")
    row = encoder.example(question, "word " * 60)
    assert len(row["input_ids"]) == 512
    assert gpt2.tokenizer.decode(row["input_ids"]).startswith("<s>Say it.")
    logits, _ = gpt2.answer_logits(gpt2.collator()([row]))
    assert logits.isfinite().all()
    told: list[int] = []
    prompts = [encoder.prompt(question)]
    assert generate_answers(gpt2, encoder, prompts, (), batch_size=1, answered=told.append)
    assert rank_labels(
        gpt2, encoder, prompts, ("one", "word " * 60), batch_size=1, answered=told.append
    )
    assert len(gpt2.encoder(40, 30).prompt(question)) == 40
    # T5's positions are relative and end nowhere.
    t5 = load_base(str(tiny_t5), dtype="float32", device="cpu")
    assert len(t5.encoder(2000, 30).prompt(question)) == 2000


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"--device {name} cannot be used"):
        device_of(name, here=True)


def test_a_device_may_be_planned_for_elsewhere() -> None:
    assert device_of("cuda:99").index == 99
    with pytest.raises(SettingsError, match="--device gpu"):
        device_of("gpu")


def test_greedy_is_greedy_whatever_the_checkpoint_would_rather(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    own = {"repetition_penalty": 3.0, "min_length": 40, "do_sample": True, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(own))
    kept = load_base(str(folder), dtype="float32", device="cpu").model.generation_config
    assert kept.eos_token_id == 1
    assert kept.repetition_penalty in (None, 1.0)
    assert not kept.min_length
    assert not kept.do_sample


def test_a_module_that_is_not_there_is_named(tiny_llama: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = resolve_settings(TrainSettings, {"target_modules": "q_proj, v_proj,"})
    assert settings.target_modules == ("q_proj", "v_proj")
    with pytest.raises(ModelError, match="has no module vproj, which --target-modules names"):
        attach_lora(base, LoraFields(target_modules=("q_proj", "vproj")), seed=0)
    # The model is as it was.
    detach_lora(attach_lora(base, LoraFields(target_modules=("q_proj",)), seed=0))


def test_all_linear_layers_but_the_head_can_be_adapted(tiny_model: Path) -> None:
    base = load_base(str(tiny_model))
    head = base.model.get_output_embeddings()
    linear = {
        name
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    settings = resolve_settings(TrainSettings, {"target_modules": "all-linear"})
    model = attach_lora(base, settings, seed=0)
    assert set(lora_layers(model)) == linear
    detach_lora(model)


@pytest.mark.parametrize("longest", [512, 600])
def test_answers_that_leave_a_prompt_no_room_are_refused(tiny_llama: Path, longest: int) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    with pytest.raises(SettingsError, match=f"--max-target-length {longest} leaves a prompt no"):
        base.encoder(64, longest)
    assert base.encoder(64, 511).max_source == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"GGUF" + bytes(90), b"GGUF\x03" + bytes(3) + b"\x05" + bytes(14), b"no model"],
)
def test_a_gguf_file_that_is_cut_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cut.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot read cut\.gguf: .") as error:
        load_base(str(tmp_path / "cut.gguf"))
    assert "\n" not in error.value.message


def test_each_process_looks_at_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        torch, "ones", lambda *_, device: looked_at.append(device) or torch.zeros(())
    )
    assert device_of("cuda", here=True) == torch.device("cuda:1")
    assert looked_at == [torch.device("cuda:1")]


def test_a_model_is_unpacked_once_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    unpacked = []

    def unpack(gguf: Path, folder: Path) -> None:
        unpacked.append(gguf)
        time.sleep(0.2)
        folder.mkdir(parents=True)
        (folder / "config.json").touch()

    monkeypatch.setattr(source, "_unpack", unpack)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(source.resolve_source, [str(tmp_path / "tiny.gguf")] * 2))
    assert found[0] == found[1]
    assert unpacked == [tmp_path / "tiny.gguf"]
