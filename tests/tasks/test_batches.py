"""Batches hold the whole frame, cut only the text, and score only answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ella_cli.errors import TaskError
from ella_cli.tasks import Prompt
from ella_cli.tasks.batches import IGNORED, Collator, Encoder, pad_left

LONG = "the cat sat " + "on the mat " * 40 + "the bird sang"


@pytest.fixture(scope="session")
def decoder(tiny_llama: Path) -> Encoder:
    return Encoder(_tokenizer(tiny_llama), "decoder", max_source=40, max_target=6)


@pytest.fixture(scope="session")
def encdec(tiny_t5: Path) -> Encoder:
    return Encoder(_tokenizer(tiny_t5), "encoder-decoder", max_source=40, max_target=6)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_short_prompt_is_the_text_as_it_stands(decoder: Encoder) -> None:
    ids = decoder.prompt(Prompt("What is ", "the cat", "\nAnswer:"))
    assert decoder.tokenizer.decode(ids) == "<s>What is the cat\nAnswer:"


@pytest.mark.parametrize(("cut", "kept"), [("end", "the cat sat"), ("start", "bird sang")])
def test_a_long_prompt_loses_text_but_never_its_frame(
    decoder: Encoder, cut: Any, kept: str
) -> None:
    ids = decoder.prompt(Prompt("What is ", LONG, "\nAnswer:", cut))
    shown = decoder.tokenizer.decode(ids)
    assert len(ids) == 40
    assert shown.startswith("<s>What is ")
    assert shown.endswith("\nAnswer:")
    assert kept in shown


@pytest.mark.parametrize(("cut", "kept"), [("end", "the cat sat"), ("start", "bird sang")])
def test_a_tokenizer_that_tells_no_places_loses_text_alone_too(cut: Any, kept: str) -> None:
    from transformers import ByT5Tokenizer

    encoder = Encoder(ByT5Tokenizer(), "encoder-decoder", max_source=60, max_target=6)
    ids = encoder.prompt(Prompt("What is ", LONG, "\nAnswer:", cut))
    shown = encoder.tokenizer.decode(ids)
    assert len(ids) == 60
    assert shown.startswith("What is ")
    assert shown.endswith("\nAnswer:</s>")
    assert kept in shown
    with pytest.raises(TaskError, match="more than fit"):
        encoder.prompt(Prompt("the cat sat on the mat " * 20, "bird", "\nAnswer:"))


def test_a_frame_that_alone_is_too_long_is_refused(decoder: Encoder) -> None:
    with pytest.raises(TaskError, match="more than fit"):
        decoder.prompt(Prompt("the cat sat on the mat " * 20, "bird", "\nAnswer:"))


def test_an_encoder_decoder_prompt_is_closed_and_a_decoder_prompt_is_open(
    decoder: Encoder, encdec: Encoder
) -> None:
    prompt = Prompt("What is ", "the cat", "\nAnswer:")
    assert encdec.prompt(prompt)[-1] == encdec.tokenizer.eos_token_id
    assert decoder.prompt(prompt)[-1] != decoder.tokenizer.eos_token_id


def test_a_label_that_an_answer_has_no_room_for_is_refused(decoder: Encoder) -> None:
    short = replace(decoder, max_target=5)
    short.check_labels("t", ("no", "yes"), generated=True)
    short.check_labels("free text", (), generated=True)
    long, longer = "a label of many words", "a label of many more words"
    needed = len(replace(decoder, max_target=99).answer(long))
    with pytest.raises(TaskError, match=rf"'a label of many words' has {needed} tokens.* 5"):
        short.check_labels("t", ("no", long), generated=True)
    # Ranked, a part of it will do, but not for two.
    short.check_labels("t", ("no", long), generated=False)
    with pytest.raises(TaskError, match="'a label of many more words' has"):
        short.check_labels("t", (long, longer), generated=False)
    replace(decoder, max_target=needed).check_labels("t", ("no", long), generated=True)


def test_a_long_answer_is_cut_before_its_end_token(decoder: Encoder) -> None:
    ids = decoder.answer("very good bad neutral happy sad red green blue")
    assert len(ids) == 6
    assert ids[-1] == decoder.tokenizer.eos_token_id


tokens = st.lists(st.integers(3, 200), min_size=1, max_size=9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5))
def test_a_decoder_batch_scores_answer_tokens_and_nothing_else(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    rows = [{"input_ids": source + target, "labels": target} for source, target in pairs]
    batch = Collator(pad=0, kind="decoder")(rows)
    predicted = batch["input_ids"].roll(-1, dims=1)[batch["logits_to_keep"]]
    assert predicted.tolist() == [token for _, target in pairs for token in target]
    assert torch.equal(batch["labels"], predicted)
    # The last position would predict beyond the answer.
    assert not batch["logits_to_keep"][:, -1].any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=5))
def test_an_encoder_decoder_batch_shifts_the_answer_right_by_one(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    rows = [{"input_ids": source, "labels": target} for source, target in pairs]
    batch = Collator(pad=0, kind="encoder-decoder", decoder_start=7)(rows)
    for row, (source, target) in enumerate(pairs):
        assert batch["decoder_input_ids"][row, : len(target)].tolist() == [7, *target[:-1]]
        assert batch["labels"][row, : len(target)].tolist() == target
        assert batch["attention_mask"][row].sum() == len(source)
    assert (batch["decoder_input_ids"] != IGNORED).all()


def test_positions_begin_at_zero_behind_the_padding() -> None:
    batch = pad_left([[5, 6, 7], [8]], pad=0)
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [0, 0, 1]]))
