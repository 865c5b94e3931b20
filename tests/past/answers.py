"""Adapters that peft made of a small model, and what plain peft and transformers answer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

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
