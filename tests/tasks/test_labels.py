"""Label sets: found in the rows, and rows held to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks.labels import find_labels, hold_to_labels, read_labels
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import TaskSpec

SPEC = TaskSpec(name="t")


def _rows(*answers: str) -> list[Row]:
    return [Row(f"text {i}", answer) for i, answer in enumerate(answers)]


def test_answers_that_repeat_are_labels_in_an_order_of_their_own() -> None:
    one, _ = find_labels(SPEC, _rows("b", "a", "b"), _rows("a", "c", "c"))
    other, _ = find_labels(SPEC, _rows("c", "a", "c"), _rows("a", "b", "b"))
    assert one.labels == other.labels == ("a", "b", "c")


def test_numbers_are_ordered_by_value() -> None:
    found, _ = find_labels(SPEC, _rows("10", "2", "-1", "x") * 2, [])
    assert found.labels == ("-1", "2", "10", "x")


@pytest.mark.parametrize(
    "answers",
    [
        ["an answer", "another", "a third one"],
        ["a very long answer that nobody would take for a label, would they, really"] * 4,
        ["two\nlines"] * 4,
        [str(i) for i in range(101)] * 2,
    ],
)
def test_answers_that_are_no_labels_leave_free_text(answers: list[str]) -> None:
    assert find_labels(SPEC, _rows(*answers), [])[0].labels == ()


def test_two_spellings_of_a_label_are_one_and_the_user_is_told() -> None:
    found, notes = find_labels(SPEC, _rows("Yes", "Yes", "yes", "No", "No", "No"), [])
    assert found.labels == ("No", "Yes")
    assert notes == ["the label 'yes' is taken for 'Yes'"]
    held, _ = hold_to_labels(found, _rows("yes", "Yes", "NO"), "train", drop=False)
    assert [row.answer for row in held] == ["Yes", "Yes", "No"]


def test_white_space_tells_no_labels_apart() -> None:
    found, notes = find_labels(SPEC, _rows(*["new york"] * 2, "New  York", *["rome"] * 3), [])
    assert found.labels == ("new york", "rome")
    assert notes == ["the label 'New  York' is taken for 'new york'"]
    held, _ = hold_to_labels(found, _rows("New\tYork"), "train", drop=False)
    assert held[0].answer == "new york"
    with pytest.raises(TaskError, match="lists the label 'new york' twice"):
        TaskSpec("a", labels=("new york", "new  york"))


def test_a_labels_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["yes", "no"]', encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.json") == ("yes", "no")


def test_a_label_outside_the_set_is_an_error_with_a_near_one() -> None:
    spec = TaskSpec(name="t", labels=("complaint", "question"))
    with pytest.raises(TaskError) as caught:
        hold_to_labels(spec, _rows("question", "complant"), "test", drop=False)
    assert "1 of 2 test rows have a label outside the set, first 'complant'" in str(caught.value)
    assert caught.value.hint.startswith("did you mean 'complaint'?")


def test_a_published_file_may_have_a_few_strays_but_not_many() -> None:
    spec = TaskSpec(name="t", labels=("a", "b"))
    held, notes = hold_to_labels(spec, _rows(*"ab" * 10, "-"), "test", drop=True)
    assert len(held) == 20
    assert "left out 1 of 21 test rows" in notes[0]
    with pytest.raises(TaskError):
        hold_to_labels(spec, _rows("a", "b", "-"), "test", drop=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "empty label set"), ("{", "cannot read"), ('{"a": 1}', "not a list"), ("[1]", "not a")],
)
def test_a_labels_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(TaskError) as caught:
        read_labels(path)
    assert words in caught.value.message


def test_labels_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(TaskError, match="lists the label 'US' twice, as 'us'"):
        TaskSpec("a", labels=("US", "us", "uk"))
