"""What is counted without data is what a real step of the same model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ella_cli.config import RunSettings
from ella_cli.model.attention import short_attention
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora, lora_layers
from ella_cli.plan.played import Batch, _Counter, play_step
from ella_cli.plan.skeleton import build_skeleton
from ella_cli.tasks.batches import Collator
from ella_cli.training.trainer import answer_cross_entropy


def _real_step(folder: Path, settings: RunSettings, batch: Batch) -> tuple[int, Any]:
    """Bytes at the peak of a step with data, beyond parameters and gradients; and the model."""
    base = load_base(str(folder), dtype="float32", device="cpu")
    model = attach_lora(base, settings, seed=0).train()
    decoder = base.kind == "decoder"
    source = batch.tokens if decoder else batch.tokens - batch.answers
    rows = [{"input_ids": [5] * source, "labels": [6] * batch.answers}] * batch.sequences
    # One row is shorter, so that there is a mask as in nearly every real batch.
    rows[0] = {"input_ids": [5] * (source - 2), "labels": [6] * batch.answers}
    inputs = Collator(0, base.kind)(rows)
    labels = inputs.pop("labels")
    inputs.pop("shift_labels", None)
    counter = _Counter([*model.parameters(), *model.buffers()])
    with short_attention(inputs["input_ids"]), counter:
        answer_cross_entropy(model(**inputs), labels).backward()  # type: ignore[no-untyped-call]
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return counter.peak - gradients, model


def test_parameters_and_modules_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    settings = RunSettings(model=str(tiny_model), device="cpu", dtype="float32")
    skeleton = build_skeleton(settings, torch.float32)
    base = load_base(str(tiny_model), dtype="float32", device="cpu")
    own = sum(p.numel() for p in base.model.parameters())
    model = attach_lora(base, settings, seed=0)
    assert skeleton.base_parameters == own
    assert skeleton.kind == base.kind
    assert skeleton.lora_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert list(skeleton.shapes) == list(lora_layers(model))
    assert all(p.device.type == "meta" for p in skeleton.model.parameters())


@pytest.mark.parametrize("tokens", [96, 160])
def test_a_played_step_takes_what_a_real_one_takes(tiny_model: Path, tokens: int) -> None:
    """On either side of where attention goes through another kernel."""
    settings = RunSettings(model=str(tiny_model), device="cpu", dtype="float32")
    batch = Batch(4, tokens, 4)
    played = play_step(build_skeleton(settings, torch.float32), batch)
    real, _ = _real_step(tiny_model, settings, batch)
    assert played.activations == pytest.approx(real, rel=0.1)


def test_a_mixture_costs_the_experts_that_a_token_is_sent_to(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    flops = []
    for chosen in (1, 2):
        config = MixtralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            num_experts_per_tok=chosen,
        )  # fmt: skip
        folder = tmp_path / str(chosen)
        MixtralForCausalLM(config).save_pretrained(folder)
        settings = RunSettings(model=str(folder), target_modules=("q_proj", "v_proj"))
        skeleton = build_skeleton(settings, torch.bfloat16)
        flops.append(play_step(skeleton, Batch(2, 256, 4)).flops)
    # Three products of a token with an expert, and the gradients of what goes in.
    one_more = 2 * 2 * 256 * 3 * 2 * 32 * 96 * 2
    assert flops[1] - flops[0] == pytest.approx(one_more, rel=0.05)


def test_a_step_grows_with_its_sequences(tiny_llama: Path) -> None:
    skeleton = build_skeleton(RunSettings(model=str(tiny_llama)), torch.float32)
    one, two = (play_step(skeleton, Batch(count, 64, 4)) for count in (2, 4))
    assert two.flops == 2 * one.flops
    assert two.activations == pytest.approx(2 * one.activations, rel=0.05)
    longer = play_step(skeleton, Batch(2, 128, 4))
    # Attention grows with the square, the rest with the length.
    assert 2 * one.flops < longer.flops < 4 * one.flops


def test_attention_holds_the_matrix_only_where_the_device_must(tiny_gpt2: Path) -> None:
    """GPT-2 drops attention weights out, which the CPU does by its fallback alone."""
    skeleton = build_skeleton(RunSettings(model=str(tiny_gpt2)), torch.float32)
    growth = {}
    for device in ("cpu", "cuda"):
        short, long = (
            play_step(skeleton, Batch(1, length, 4), device=device).activations
            for length in (128, 512)
        )
        growth[device] = long / short
    assert growth["cpu"] > 9
    assert growth["cuda"] < 7
