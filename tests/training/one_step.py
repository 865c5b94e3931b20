"""The gradients of one optimizer step; run alone, or by torchrun in several processes.

    python one_step.py MODEL ADAPTER OUT --per-device 4 --accumulation 2 --lam 50 [--plain]

`--plain` puts the mixin in front of a Trainer with the model's own loss.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from ella_cli.adapter import read_adapter
from ella_cli.config import LoraFields, TrainSettings
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.past import Past
from ella_cli.penalty import EllaPenalty
from ella_cli.tasks.batches import Collator
from ella_cli.training.mixin import EllaTrainerMixin
from ella_cli.training.trainer import TaskTrainer, answer_cross_entropy

ROWS = 8
LORA = LoraFields(lora_rank=2, lora_alpha=4, lora_dropout=0.0)
# What any Trainer has to be told, so that it makes one step, on the CPU, and says nothing.
ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


class PlainTrainer(EllaTrainerMixin, Trainer):
    pass


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see, and steps no further."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.seen[name.removeprefix("module.")] = parameter.grad.detach().clone()


def adapted(base: Base, seed: int) -> Any:
    """The base with a LoRA pair on it whose B is not zero."""
    model = attach_lora(base, LORA, seed=seed)
    # T5 and GPT-2 bring dropout of their own, whose draws depend on how a batch is cut.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            b, _, _ = lora_pair(layer)
            b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
    return model


def rows(base: Base) -> list[dict[str, list[int]]]:
    """Rows of unequal length with unequal numbers of answer tokens."""
    generator = torch.Generator().manual_seed(3)
    out = []
    for i in range(ROWS):
        source = torch.randint(3, 200, (5 + 3 * i,), generator=generator).tolist()
        target = torch.randint(3, 200, (1 + i % 4,), generator=generator).tolist()
        joined = source + target if base.kind == "decoder" else source
        out.append({"input_ids": joined, "labels": target})
    return out


def step(
    folder: Path, adapter: Path, *, per_device: int, accumulation: int, lam: float, plain: bool
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients by parameter name, and the penalty's gradient-free value."""
    base = load_base(str(folder), dtype="float32", device="cpu")
    model = adapted(base, seed=1)
    settings = TrainSettings()
    arguments = TrainingArguments(
        output_dir=str(adapter.parent / "unused"),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        remove_unused_columns=False,
        **ONE_STEP,
        ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
        seed=settings.seed,
    )
    start = getattr(base.model.config, "decoder_start_token_id", None) or 0
    trainer: Any = (PlainTrainer if plain else TaskTrainer)(
        model=model,
        args=arguments,
        train_dataset=rows(base),
        data_collator=Collator(0, base.kind, start),
        compute_loss_func=None if plain else answer_cross_entropy,
    )
    past = Past.of([read_adapter(adapter)])
    share = (arguments.process_index, arguments.world_size)
    trainer.penalty = EllaPenalty(model, past, share=share)
    trainer.lam = lam
    kept = Gradients()
    trainer.add_callback(kept)
    trainer.train()
    return kept.seen, float(trainer.last_penalty)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-device", type=int, required=True)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--lam", type=float, required=True)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    gradients, _ = step(
        given.model,
        given.adapter,
        per_device=given.per_device,
        accumulation=given.accumulation,
        lam=given.lam,
        plain=given.plain,
    )
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        save_file(gradients, given.out)


if __name__ == "__main__":
    main()
