"""The model card beside an adapter, `README.md`: what it is, what it stands on, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ella_cli.config import TrainSettings
from ella_cli.model.source import adapter_loading, hub_id
from ella_cli.training.methods import METHODS

_OPTIMIZERS = {"adamw": "AdamW", "adamw-past": "AdamW in the past's eigenbasis", "muon": "Muon"}


def model_card(manifest: Mapping[str, Any], settings: TrainSettings) -> str:
    task, base = manifest["task"], manifest["base"]["model"]
    penalty = f", λ = {manifest['lambda']:g}" if manifest["lambda"] else ""
    known = hub_id(base)
    head = [f"base_model: {known}"] if known else []
    return "\n".join([
        "---",
        *head,
        "library_name: peft",
        "tags:",
        "- lora",
        "- continual-learning",
        "- ella",
        "---",
        "",
        f"# {task}",
        "",
        f"A LoRA adapter for the task **{task}**, trained on {manifest['data']['train_rows']} rows "
        f"on top of {_ground(manifest, settings)} (method {manifest['method']}{penalty}; task "
        f"{manifest['order_index'] + 1} of its sequence).",
        "",
        f"Its update is ΔW = {manifest['scale']:g} · B A. {_use(settings)} It is a stock PEFT "
        "adapter:",
        "",
        "```python",
        *adapter_loading(
            base, f"AutoModelFor{'Causal' if manifest['kind'] == 'decoder' else 'Seq2Seq'}LM"
        ),
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| rank, alpha, dropout | {settings.lora_rank}, {settings.lora_alpha:g}, "
        f"{settings.lora_dropout:g} |",
        f"| optimizer | {_OPTIMIZERS[manifest['optim']]}, lr {settings.learning_rate:g} "
        f"{settings.lr_scheduler_type} |",
        f"| global batch | {manifest['batch']['global']} |",
        f"| steps | {manifest['steps']} |",
        f"| last cross-entropy | {manifest['curves']['ce'][-1]:.3f} nats a token |",
        f"| update norm | {manifest['update_norm']:.3f} |",
        f"| seed | {manifest['seed']} |",
        "",
        "Everything else, with fingerprints, curves and versions, is in `ella.json`.",
        "",
    ])  # fmt: skip


def _ground(manifest: Mapping[str, Any], settings: TrainSettings) -> str:
    base, earlier = manifest["base"]["model"], manifest["past"]["tasks"]
    if METHODS[settings.method].carried and manifest["order_index"]:
        return f"`{base}`, going on from the adapter of the task before"
    return f"`{base}` plus the updates of {', '.join(earlier)}" if earlier else f"`{base}` alone"


def _use(settings: TrainSettings) -> str:
    if METHODS[settings.method].summed:
        return (
            "It is one term of a sum: the model after this task is the base plus the updates of "
            "all tasks up to it. Add it with `ella accumulate` and write the sum as one adapter or "
            "one model with `ella export`."
        )
    return "The model after this task is the base plus this adapter alone."
