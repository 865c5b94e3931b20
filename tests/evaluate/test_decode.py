"""Answers are what the model itself would say, one row and one label at a time."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoTokenizer

from ella_cli.errors import NonFiniteError
from ella_cli.evaluate.decode import (
    _encdec_likelihoods,
    _one_by_one,
    _side_by_side,
    generate_answers,
    rank_labels,
    sees_all,
)
from ella_cli.model.base import Base, load_base
from ella_cli.tasks.batches import Encoder

LABELS = ("very good", "bad", "neutral happy sad", "very bad")


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return load_base(str(tiny_model), dtype="float32", device="cpu")


@pytest.fixture
def encoder(base: Base) -> Encoder:
    return Encoder(base.tokenizer, base.kind)


def _prompts(base: Base) -> list[list[int]]:
    texts = ["What is the cat?", "the dog sang on the mat in the house", "bird"]
    return [base.tokenizer(text)["input_ids"] for text in texts]


def test_likelihoods_side_by_side_equal_those_of_each_label_alone(
    base: Base, encoder: Encoder
) -> None:
    prompts, targets = _prompts(base), [encoder.answer(label) for label in LABELS]
    decoders = (_side_by_side, _one_by_one)
    with torch.inference_mode():
        ways = decoders if base.kind == "decoder" else (_encdec_likelihoods,)
        found = [way(base, prompts, targets) for way in ways]
        base.model.double()
        expected = [[_alone(base, prompt, target) for target in targets] for prompt in prompts]
    for got in found:
        torch.testing.assert_close(
            got.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-5, rtol=1e-5
        )


def _windowed(kind: str) -> tuple[type, dict[str, object]]:
    import transformers

    size = {
        "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    if kind == "mistral":
        return transformers.MistralForCausalLM, {**size, "sliding_window": 8}
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return transformers.Gemma3ForCausalLM, {**size, "sliding_window": 8, "layer_types": layers}
    if kind == "gpt_neo":
        return transformers.GPTNeoForCausalLM, {
            "vocab_size": 384, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 512,
        }  # fmt: skip
    assert kind == "bloom"
    return transformers.BloomForCausalLM, {
        "vocab_size": 384, "hidden_size": 32, "n_layer": 2, "n_head": 4,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt_neo", "bloom"])
def test_models_that_do_not_see_all_rank_as_they_read(
    kind: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model, size = _windowed(kind)
    torch.manual_seed(0)
    special = AutoTokenizer.from_pretrained(tiny_llama)
    model(model.config_class(**size, eos_token_id=special.eos_token_id)).save_pretrained(tmp_path)  # type: ignore[attr-defined]
    special.save_pretrained(tmp_path)
    base = load_base(str(tmp_path), dtype="float32", device="cpu")
    encoder = base.encoder(200, 50)
    prompts, targets = _prompts(base), [encoder.answer(label) for label in LABELS]
    assert not sees_all(base, max(map(len, prompts)) + max(map(len, targets)))
    assert sees_all(base, 8) == (kind in ("mistral", "gemma3"))
    with torch.inference_mode():
        base.model.double()
        expected = torch.tensor([[_alone(base, p, t) for t in targets] for p in prompts])
        base.model.float()
        got = _one_by_one(base, prompts, targets)
        torch.testing.assert_close(got, expected.float(), atol=2e-5, rtol=1e-5)
        if kind != "bloom":
            # What the other way would say of another model.
            assert not torch.allclose(_side_by_side(base, prompts, targets), got, atol=1e-3)
    answers = rank_labels(base, encoder, prompts, LABELS, batch_size=2, answered=lambda _: None)
    assert answers == [LABELS[i] for i in expected.argmax(dim=1)]


def _alone(base: Base, prompt: list[int], target: list[int]) -> float:
    """Log p(target | prompt) in float64, one token's distribution after another."""
    total = 0.0
    for i, token in enumerate(target):
        if base.kind == "decoder":
            ids = torch.tensor([prompt + target[:i]])
            logits = base.model(input_ids=ids).logits
        else:
            start = [base.model.config.decoder_start_token_id]
            logits = base.model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([start + target[:i]]),
            ).logits
        total += logits[0, -1].double().log_softmax(dim=0)[token].item()
    return total


def test_ranking_gives_the_likeliest_label_whatever_the_batch(base: Base, encoder: Encoder) -> None:
    prompts, targets = _prompts(base), [encoder.answer(label) for label in LABELS]
    with torch.inference_mode():
        likely = torch.tensor([[_alone(base, p, t) for t in targets] for p in prompts])
    told: list[int] = []
    for size in (1, 2, 3):
        answers = rank_labels(base, encoder, prompts, LABELS, batch_size=size, answered=told.append)
        assert answers == [LABELS[i] for i in likely.argmax(dim=1)]
    assert told == [1, 1, 1, 2, 1, 3]


def test_a_model_that_gives_no_numbers_has_no_likeliest_label(base: Base, encoder: Encoder) -> None:
    head = base.model.get_output_embeddings()
    assert head is not None
    weight = cast(torch.Tensor, head.weight)
    before = weight.detach().clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(NonFiniteError, match="are no numbers"):
            rank_labels(
                base, encoder, _prompts(base), LABELS, batch_size=3, answered=lambda _: None
            )
    finally:
        weight.data.copy_(before)


def test_generation_does_not_depend_on_padding(base: Base, encoder: Encoder) -> None:
    prompts = _prompts(base)
    one = generate_answers(base, encoder, prompts, LABELS, batch_size=1, answered=lambda _: None)
    all_ = generate_answers(base, encoder, prompts, LABELS, batch_size=3, answered=lambda _: None)
    assert one == all_


def test_with_labels_an_answer_is_the_short_beginning_of_the_free_one(
    base: Base, encoder: Encoder
) -> None:
    prompts = _prompts(base)
    free = generate_answers(base, encoder, prompts, [], batch_size=3, answered=lambda _: None)
    short = generate_answers(base, encoder, prompts, ["bad"], batch_size=3, answered=lambda _: None)
    for long, cut in zip(free, short, strict=True):
        # A cut inside a character leaves a replacement mark at the end.
        assert long.startswith(cut.rstrip("\ufffd"))
    # The random T5 ends at once, with or without labels.
    assert sum(map(len, short)) < sum(map(len, free)) or base.kind == "encoder-decoder"
