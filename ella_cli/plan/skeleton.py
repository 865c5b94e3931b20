"""The model with its LoRA pairs on the meta device: every shape and dtype, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ella_cli.config import RunSettings
from ella_cli.model.base import Base, Kind
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.model.source import model_errors, smollm2_gguf


@dataclass(frozen=True)
class Skeleton:
    """
    Attributes:
        model: a PEFT model whose parameters lie on the meta device.
        kind: whether it is a decoder or an encoder-decoder.
        dtype: of the base's weights.
        shapes: (M, N) of each adapted module, by name, in the model's order.
        notes: what the count leaves out, a sentence each.
    """

    model: torch.nn.Module
    kind: Kind
    dtype: torch.dtype
    shapes: dict[str, tuple[int, int]]
    notes: tuple[str, ...] = ()

    @property
    def base_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if not p.requires_grad)

    @property
    def base_bytes(self) -> int:
        """Weights and buffers; tied ones once."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return sum(t.nbytes for t in (*frozen, *self.model.buffers()))

    @property
    def lora_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def lora_bytes(self) -> int:
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)


def build_skeleton(settings: RunSettings, dtype: torch.dtype) -> Skeleton:
    """The model of `settings`, adapted as `ella run` would; reads config.json and nothing else.

    Raises:
        ModelError: no config there, no such architecture, or no module to adapt.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = _config(settings.model)
    kind: Kind = "encoder-decoder" if config.is_encoder_decoder else "decoder"
    loader = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
    notes = []
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
        notes.append(f"the model is quantised; its weights are counted as {_name(dtype)}")
    with (
        model_errors(
            f"cannot build {settings.model} from its config",
            hint="its architecture must be one that transformers knows",
        ),
        init_empty_weights(include_buffers=True),
    ):
        model = loader.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    # Made apart on the meta device, an embedding and its head are two again.
    model.tie_weights()
    model.requires_grad_(False)
    # LoRA is attached by the code that trains; it needs no tokenizer and no fingerprint.
    base = Base(settings.model, model, cast(Any, None), kind, fingerprint="")
    adapted = attach_lora(base, settings, seed=0).train()
    shapes = {}
    for name, layer in lora_layers(adapted).items():
        b, a, _ = lora_pair(layer)
        shapes[name] = (b.shape[0], a.shape[1])
    return Skeleton(adapted, kind, dtype, shapes, tuple(notes))


def _config(source: str) -> Any:
    from transformers import AutoConfig

    path = smollm2_gguf() if source == "smollm2" else Path(source).expanduser()
    with model_errors(
        f"cannot read the config of {source}",
        hint="give a hub id (needs the network), a folder with config.json, or smollm2",
    ):
        if path.suffix == ".gguf":
            # A GGUF file's header says it all; unpacking its weights would take a minute.
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        where = str(path) if path.is_dir() else source
        return AutoConfig.from_pretrained(where, trust_remote_code=False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
