"""The demo's tasks: the same everywhere, learnable, and alike enough to interfere."""

from __future__ import annotations

from collections import Counter

import pytest

from ella_cli.tasks import ORDERS, load_task
from ella_cli.tasks.grammar import DEMO_NAMES, TEST_ROWS, TRAIN_ROWS, demo_spec
from ella_cli.tasks.rows import normal_form
from ella_cli.tasks.scoring import words

each_task = pytest.mark.parametrize("name", DEMO_NAMES)


@each_task
def test_rows_are_distinct_and_no_test_row_is_in_train(name: str) -> None:
    task = load_task(name)
    texts = [normal_form(row.text) for row in (*task.train, *task.test)]
    assert len(set(texts)) == len(texts) == TRAIN_ROWS + TEST_ROWS
    assert task.warnings == ()


@each_task
def test_labels_come_in_equal_numbers(name: str) -> None:
    task = load_task(name)
    for rows in (task.train, task.test):
        counts = Counter(row.answer for row in rows)
        assert set(counts) == set(task.spec.labels)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert 4 <= len(task.spec.labels) <= 8


@each_task
def test_every_slot_is_filled_and_messages_are_short(name: str) -> None:
    for row in load_task(name).train:
        assert "{" not in row.text
        assert "  " not in row.text
        assert 25 <= len(row.text.split()) <= 55


def test_the_rows_are_the_same_on_every_machine() -> None:
    prints = {name: load_task(name).fingerprint[:16] for name in DEMO_NAMES}
    assert prints == {
        "demo-topic": "629fc91a678da7c9",
        "demo-mood": "c88b75066973d474",
        "demo-place": "76980576ad4f58d0",
        "demo-request": "a7722dd0ec5432f2",
    }


def test_tasks_share_their_words_and_some_their_labels() -> None:
    vocabularies = [
        {word for row in load_task(name).train for word in words(row.text)} for name in DEMO_NAMES
    ]
    for one in vocabularies:
        for other in vocabularies:
            assert len(one & other) > 0.95 * len(one)
    assert set(demo_spec("demo-topic").labels) & set(demo_spec("demo-place").labels)


@each_task
def test_a_small_share_of_messages_quotes_another_label(name: str) -> None:
    rows = load_task(name).train
    assert 0.04 < sum('"' in row.text for row in rows) / len(rows) < 0.15


@each_task
def test_counting_words_learns_a_task_but_not_perfectly(name: str) -> None:
    # Naive Bayes: learnable from the words alone, and yet the hard rows mislead it.
    task = load_task(name)
    seen = {label: Counter[str]() for label in task.spec.labels}
    for row in task.train:
        seen[row.answer].update(set(words(row.text)))
    rows_of = Counter(row.answer for row in task.train)

    def guess(text: str) -> str:
        def likelihood(label: str) -> float:
            value = 1.0
            for word in set(words(text)):
                value *= 20 * (seen[label][word] + 0.5) / (rows_of[label] + 1)
            return value

        return max(task.spec.labels, key=likelihood)

    right = sum(guess(row.text) == row.answer for row in task.test) / len(task.test)
    assert 0.65 < right < 1.0


def test_the_demo_order_puts_the_tasks_that_share_labels_apart() -> None:
    order = ORDERS["demo"]
    assert abs(order.index("demo-topic") - order.index("demo-place")) > 1
