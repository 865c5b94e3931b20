"""LoRA through PEFT: attached to the frozen base, and taken off again."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ella_cli.config import LoraFields
from ella_cli.errors import ModelError
from ella_cli.model.base import Base

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

_PREFIX = "base_model.model."
# PEFT's word for every linear layer but the head.
_ALL = "all-linear"


def attach_lora(base: Base, settings: LoraFields, *, seed: int) -> PeftModel:
    """`base.model` with a fresh LoRA pair (A random by `seed`, B zero) on its target modules.

    Raises:
        ModelError: no module has one of the target names, or PEFT knows no default for the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(seed)
    named = settings.target_modules or ()
    encdec = base.kind == "encoder-decoder"
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        target_modules=_ALL if _ALL in named else (list(named) or None),
        task_type=TaskType.SEQ_2_SEQ_LM if encdec else TaskType.CAUSAL_LM,
        # Conv1D keeps (in, out); PEFT would find out and warn.
        fan_in_fan_out=base.model.config.model_type == "gpt2",
    )
    try:
        with warnings.catch_warnings():
            # Where embeddings and head share a weight, `Fold` and `ella export` keep them apart.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            # GPT-2's head is no Conv1D; PEFT takes it for what it is.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")
            model = get_peft_model(base.model, config)
    except ValueError as error:
        raise ModelError(
            f"cannot put LoRA on {base.source}: {str(error).splitlines()[0]}",
            hint="name modules of this model with --target-modules, such as q_proj,v_proj",
        ) from error
    adapted = lora_layers(model)
    if _ALL in named and len(named) > 1:
        detach_lora(model)
        raise ModelError(
            f"--target-modules has {_ALL} beside {', '.join(n for n in named if n != _ALL)}",
            hint=f"give {_ALL} alone, or the modules' names",
        )
    for name in named:
        if name != _ALL and not any(one == name or one.endswith(f".{name}") for one in adapted):
            detach_lora(model)
            raise ModelError(
                f"{base.source} has no module {name}, which --target-modules names",
                hint="name modules of this model, such as q_proj,v_proj",
            )
    # get_peft_model writes the folder the weights came from, which may say nothing elsewhere.
    model.peft_config["default"].base_model_name_or_path = base.source
    return model


def load_lora(base: Base, folder: str) -> PeftModel:
    """`base.model` with the finished adapter in `folder` on it, as it answers."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base.model, folder)


def detach_lora(model: PeftModel) -> None:
    """Takes LoRA off the base model, whose weights are as they were before it was attached."""
    restored = model.unload()
    # PEFT marks the model it was on; left there, the next attach would warn of a second adapter.
    if hasattr(restored, "peft_config"):
        del restored.peft_config
    restored.eval()


def lora_layers(model: torch.nn.Module) -> dict[str, LoraLayer]:
    """Adapted modules by their name in the base model, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def lora_pair(layer: LoraLayer) -> tuple[Tensor, Tensor, float]:
    """B (M, R), A (R, N) and the scale of ΔW = scale · B A of a layer's one adapter."""
    (name,) = layer.active_adapters
    if name in layer.lora_A:
        b, a = layer.lora_B[name].weight, layer.lora_A[name].weight
    else:
        b, a = layer.lora_embedding_B[name], layer.lora_embedding_A[name]
    assert isinstance(b, Tensor)
    assert isinstance(a, Tensor)
    return b, a, float(layer.scaling[name])


def update_norms(model: torch.nn.Module) -> dict[str, float]:
    """‖ΔW‖_F per adapted module, through ‖BA‖² = ⟨BᵀB, AAᵀ⟩, which never builds BA."""
    pairs = {name: lora_pair(layer) for name, layer in lora_layers(model).items()}
    alike: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for name, (b, a, _) in pairs.items():
        alike.setdefault((b.shape, a.shape), []).append(name)
    norms: dict[str, float] = {}
    with torch.no_grad():
        # Of each shape at once: on a GPU a step of many small products costs their calls.
        for names in alike.values():
            bs = torch.stack([pairs[name][0] for name in names]).float()  # (K, M, R)
            as_ = torch.stack([pairs[name][1] for name in names]).float()  # (K, R, N)
            roots = ((bs.mT @ bs) * (as_ @ as_.mT)).sum(dim=(1, 2)).clamp_min(0).sqrt().tolist()
            norms |= {name: pairs[name][2] * root for name, root in zip(names, roots, strict=True)}
    return {name: norms[name] for name in pairs}
