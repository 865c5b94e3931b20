"""Prompts: O-LoRA's frame to the letter, and which part may be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.tasks import Row, TaskSpec, build_prompt, builtin_spec, known_names
from ella_cli.tasks.grammar import DEMO_NAMES, demo_spec


def _spec(name: str) -> TaskSpec:
    spec = demo_spec(name) if name in DEMO_NAMES else builtin_spec(name)
    assert spec is not None
    return spec


def test_the_published_prompt_comes_out_letter_by_letter() -> None:
    prompt = build_prompt(_spec("sst2"), Row("Text: a quiet film ", "Good"), header=True)
    assert str(prompt) == (
        "Task:SC\nDataset:SST-2\n"
        "What is the sentiment of the following paragraph? Choose one from the option.\n"
        "Option: Good, Bad \n"
        "Text: a quiet film \nAnswer:"
    )


def test_without_the_header_the_prompt_does_not_name_the_data_set() -> None:
    with_header = build_prompt(_spec("agnews"), Row("x", "World"), header=True)
    without = build_prompt(_spec("agnews"), Row("x", "World"), header=False)
    assert str(with_header) == "Task:TC\nDataset:agnews\n" + str(without)
    assert "agnews" not in str(without)


def test_copa_asks_by_itself() -> None:
    text = 'Which sentence is the cause of "It rained."? Choose one between A and B.\nA: x\nB: y'
    assert str(build_prompt(_spec("copa"), Row(text, "A"), header=False)) == text + "\nAnswer:"


@pytest.mark.parametrize("header", [True, False])
def test_a_trace_prompt_is_left_as_it_is_and_only_its_middle_may_be_cut(header: bool) -> None:
    whole = "Write a summary of the following meeting transcripts.\nA: yes.\nB: no.\nSummary:"
    prompt = build_prompt(_spec("MeetingBank"), Row(whole, "x"), header=header)
    assert str(prompt) == whole
    assert prompt.head == "Write a summary of the following meeting transcripts.\n"
    assert prompt.text == "A: yes.\nB: no."
    assert prompt.tail == "\nSummary:"


def test_code_to_be_completed_loses_its_start() -> None:
    prompt = build_prompt(_spec("Py150"), Row("<s> import os <EOL>", "x"), header=False)
    assert (prompt.head, prompt.text, prompt.cut) == ("<s> ", "import os <EOL>", "start")


@given(st.text(max_size=60), st.sampled_from(known_names()), st.booleans())
def test_no_text_is_lost_or_changed(text: str, name: str, header: bool) -> None:
    spec = _spec(name)
    prompt = build_prompt(spec, Row(text, "x"), header=header)
    assert text in str(prompt)
    if spec.frame:
        assert prompt.text == text
        assert prompt.tail == "\nAnswer:"
    else:
        assert str(prompt) == text


def test_the_answer_is_not_in_the_prompt() -> None:
    row = Row("a text", "a secret answer")
    assert "secret" not in str(build_prompt(_spec("dbpedia"), row, header=True))
