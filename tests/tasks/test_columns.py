"""Which column is the text and which the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks.columns import rows_of
from ella_cli.tasks.records import Record
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import Columns

PATH = Path("train.jsonl")


def _rows(fields: dict[str, object], columns: Columns | None = None) -> list[Row]:
    return rows_of([Record("line 1", fields)], PATH, columns)[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"sentence": "t", "label": "a"},
        {"Text": "t", "LABEL": "a", "id": 7},
        {"prompt": "t", "answer": " a\n"},
        {"input": "t", "output": "a"},
        {"question": "t", "target": "a"},
        {"first": "t", "second": "a"},
    ],
)
def test_text_and_answer_are_found(fields: dict[str, object]) -> None:
    assert _rows(fields) == [Row("t", "a")]


def test_the_text_is_left_as_it_is() -> None:
    assert _rows({"text": " Title: x\n", "label": "a"})[0].text == " Title: x\n"


def test_a_guess_by_position_is_told() -> None:
    notes = rows_of([Record("line 1", {"first": "t", "second": "a"})], PATH, None)[1]
    assert "'first'" in notes[0]
    assert "task.yaml" in notes[0]


def test_an_instruction_goes_before_its_input() -> None:
    fields: dict[str, object] = {"instruction": "Translate.", "input": "rot", "output": "red"}
    assert _rows(fields) == [Row("Translate.\nrot", "red")]


def test_a_pattern_puts_columns_together() -> None:
    fields: dict[str, object] = {"title": "T", "body": "B", "stars": 4, "extra": {"x": 1}}
    columns = Columns(text="{title}: {body}", answer="stars")
    assert _rows(fields, columns) == [Row("T: B", "4")]


def test_numbers_and_truth_values_become_texts() -> None:
    assert _rows({"text": "t", "label": 0}) == [Row("t", "0")]
    assert _rows({"text": "t", "label": False}) == [Row("t", "False")]


def test_the_last_reply_of_a_chat_is_the_answer() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
    ]
    assert _rows({"messages": messages}) == [Row("Be brief.\n2 + 2?", "4")]
    longer = [
        *messages,
        {"role": "user", "content": "3 + 3?"},
        {"role": "assistant", "content": "6"},
    ]
    assert _rows({"messages": longer}) == [
        Row("Be brief.\nuser: 2 + 2?\nassistant: 4\nuser: 3 + 3?", "6")
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"a": "t", "b": "u", "c": "v"}, "cannot tell text from answer"),
        ({"text": "t", "label": ""}, "line 1: the answer is empty"),
        ({"text": " ", "label": "a"}, "line 1: the text is empty"),
        ({"text": None, "label": "a"}, "line 1: the text is empty"),
        ({"text": "t", "label": ["a"]}, "line 1: ['a'] is not a text"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "does not end with the assistant"),
        ({"messages": [{"role": "user"}]}, "lacks role or content"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(fields: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        _rows(fields)
    assert words in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(text="titel", answer="label"), "no 'titel' among 'text', 'label'"),
        (Columns(text="{text", answer="label"), "is not a pattern"),
        (Columns(text="{0}", answer="label"), "no '0' among 'text', 'label'"),
    ],
)
def test_columns_that_are_not_there_are_named(columns: Columns, words: str) -> None:
    with pytest.raises(TaskError) as caught:
        _rows({"text": "t", "label": "a"}, columns)
    assert words in caught.value.message


def test_a_later_row_without_the_column_is_named_by_its_line() -> None:
    records = [Record("line 1", {"text": "t", "label": "a"}), Record("line 2", {"text": "t"})]
    with pytest.raises(TaskError, match=r"line 2: no 'label'"):
        rows_of(records, PATH, None)


def test_a_name_that_looks_like_a_pattern_is_a_name() -> None:
    for name in ("0", "text.en", "Comment: body", "a{b}", "x!r"):
        assert _rows({name: "t", "label": "a"}, Columns(text=name, answer="label"))[0].text == "t"
        # Without a choice, as the only other column.
        assert _rows({name: "t", "Klasse": "a"})[0].text == "t"
    assert _rows({"0": "t", "1": "a"}, Columns(text="{0}!", answer="1"))[0].text == "t!"


@pytest.mark.parametrize(
    "pattern", ["{text:>99999999999999}", "{text!r}", "a{}b", "{text.__class__}"]
)
def test_a_pattern_is_of_names_and_runs_nothing(pattern: str) -> None:
    with pytest.raises(TaskError, match=r"is not a pattern|no 'text\.__class__' among"):
        _rows({"text": "t", "label": "a"}, Columns(text=pattern, answer="label"))


def test_what_else_might_be_meant_is_told() -> None:
    fields = {"question": "q", "passage": "p", "answer": "a", "id": 3}
    rows, notes = rows_of([Record("line 1", fields)], PATH, None)
    assert rows == [Row("q", "a")]
    assert "left 'passage' out" in notes[0]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(TaskError, match="line 1: the text holds half a character"):
        _rows({"text": "smile \ud83d", "label": "a"})
