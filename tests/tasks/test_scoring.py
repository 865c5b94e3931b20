"""Scores of answers, held against another way to compute each."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.tasks import Row, TaskSpec, score_rows
from ella_cli.tasks.scoring import edit_similarity, normalise, words
from ella_cli.tasks.spec import METRICS, Metric

texts = st.text(alphabet="ab cd.Ä中文", max_size=12)


def _score(
    metric: Metric,
    prediction: str,
    answer: str,
    *,
    labels: tuple[str, ...] = (),
    compare: Literal["exact", "first-letter"] = "exact",
    text: str = "",
) -> float:
    spec = TaskSpec(name="t", metric=metric, labels=labels, compare=compare)
    return score_rows(spec, [prediction], [Row(text, answer)])[0]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        (" Very  Positive. ", "very positive"),
        ("Science & Technology", "science technology"),
        ("Mean-of-Transportation", "mean of transportation"),
        ("GROẞE STRASSE", "große straße"),
        ("Ｂ", "b"),
        ("“World”", "World"),
    ],
)
def test_case_punctuation_and_outer_space_do_not_count(prediction: str, answer: str) -> None:
    assert _score("accuracy", prediction, answer) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [("positive", "very positive"), ("2.5", "25"), ("-3", "3"), ("1,000", "1.000"), ("", "a")],
)
def test_another_answer_scores_nothing(prediction: str, answer: str) -> None:
    assert _score("accuracy", prediction, answer) == 0.0


def test_numbers_score_whatever_comes_after_them() -> None:
    assert _score("accuracy", " 28.57.", "28.57") == 1.0
    assert _score("accuracy", "-3", "-3") == 1.0


def test_labels_that_differ_in_punctuation_only_are_told_apart() -> None:
    assert _score("accuracy", "C", "C++", labels=("C", "C++")) == 0.0
    assert _score("accuracy", " c++ ", "C++", labels=("C", "C++")) == 1.0
    assert _score("accuracy", "+", "-", labels=("+", "-")) == 0.0


@given(texts)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("B", 1.0), ("b. Because", 1.0), ("(B) since", 1.0), ("B\nOther reasons", 1.0),
     ("A", 0.0), ("Because", 0.0), ("", 0.0)],
)  # fmt: skip
def test_only_the_letter_counts_where_reasons_follow(prediction: str, score: float) -> None:
    answer = "B\nThe sentence is a statement."
    assert _score("accuracy", prediction, answer, compare="first-letter") == score


def _common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, by the textbook recursion."""
    if not left or not right:
        return 0
    if left[-1] == right[-1]:
        return _common(left[:-1], right[:-1]) + 1
    return max(_common(left[:-1], right), _common(left, right[:-1]))


@given(st.text("ab cÄ中", max_size=7), st.text("ab cÄ中", max_size=7))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(left: str, right: str) -> None:
    mine, theirs = words(left), words(right)
    common = _common(mine, theirs)
    expected = 2 * common / (len(mine) + len(theirs)) if common else 0.0
    assert _score("rouge-l", left, right) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("text", ["市议会通过了法案", "Müßiggänger über Öl", "Ordinance 19-1363"])
def test_a_summary_equal_to_the_reference_scores_1_in_any_script(text: str) -> None:
    assert _score("rouge-l", text, text) == pytest.approx(1.0)


def test_words_of_unspaced_scripts_are_characters() -> None:
    assert words("AI模型 in Zürich, 2024!") == ["ai", "模", "型", "in", "zürich", "2024"]


@given(st.text("ab(", max_size=7), st.text("ab(", max_size=7))
def test_edit_similarity_counts_insertions_and_deletions(left: str, right: str) -> None:
    edits = len(left) + len(right) - 2 * _common(list(left), list(right))
    expected = 1 - edits / (len(left) + len(right)) if left + right else 1.0
    assert edit_similarity(left, right) == pytest.approx(expected, abs=1e-12)


def test_literal_marks_count_as_the_literals_they_stand_for() -> None:
    assert edit_similarity("x = '<STR_LIT:utf8>'", "x = 'utf8'") == 1.0
    assert edit_similarity("return <NUM_LIT>", "return 0") == 1.0
    assert edit_similarity("f ( <NUM_LIT:10> , '<STR_LIT>' )", "f ( 10 , '' )") == 1.0


@given(st.sampled_from(METRICS), texts, texts, texts)
def test_every_score_is_a_fraction(metric: Metric, text: str, prediction: str, answer: str) -> None:
    assert 0.0 <= _score(metric, prediction, answer, text=text) <= 1.0


@given(st.sampled_from(METRICS), st.text("ab cd中?!😀", min_size=1, max_size=12).filter(str.strip))
def test_the_answer_itself_scores_1(metric: Metric, answer: str) -> None:
    assert _score(metric, answer, answer, text="a text") == pytest.approx(1.0)


def test_scores_keep_the_order_of_the_rows() -> None:
    spec = TaskSpec(name="t", labels=("a", "b"))
    rows = [Row("1", "a"), Row("2", "b"), Row("3", "a")]
    assert score_rows(spec, ["a", "a", "a"], rows) == (1.0, 0.0, 1.0)


def test_vowel_signs_and_accents_belong_to_their_words() -> None:
    assert words("की का") == ["की", "का"]
    assert normalise("की") != normalise("का")
    assert normalise("مُحَمَّد!") == "مُحَمَّد"
    assert _score("rouge-l", "का", "की") == 0.0


def test_an_answer_of_nothing_but_signs_is_not_matched_by_silence() -> None:
    for answer in ("+", "😀"):
        assert _score("accuracy", "", answer) == 0.0
        assert _score("accuracy", "-", answer) == 0.0
        assert _score("accuracy", f" {answer}", answer) == 1.0
    # How a sign is drawn is no word.
    assert normalise("positive \u263a\ufe0f") == "positive"
    assert words("positive \u263a\ufe0f") == ["positive"]
