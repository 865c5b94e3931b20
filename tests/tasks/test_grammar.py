"""The demo's tasks: the same everywhere, learnable, and alike enough to interfere."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from ella_cli.tasks import ORDERS, load_task
from ella_cli.tasks.grammar import DEMO_NAMES, TEST_ROWS, TRAIN_ROWS, _bank, demo_spec
from ella_cli.tasks.scoring import words
from ella_cli.tasks.spec import normal_form

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
        assert 20 <= len(row.text.split()) <= 45


def test_the_rows_are_the_same_on_every_machine() -> None:
    prints = {name: load_task(name).fingerprint[:16] for name in DEMO_NAMES}
    assert prints == {
        "demo-topic": "e61f4e6664c3f511",
        "demo-mood": "9f46b9c7c743ad4d",
        "demo-place": "f20e06076b73b08f",
        "demo-request": "4dac5de360ff238f",
    }


def test_tasks_share_their_words_and_two_their_labels() -> None:
    vocabularies = [
        {word for row in load_task(name).train for word in words(row.text)} for name in DEMO_NAMES
    ]
    for one in vocabularies:
        for other in vocabularies:
            assert len(one & other) > 0.9 * len(one)
    assert demo_spec("demo-topic").labels == demo_spec("demo-place").labels


@each_task
def test_the_rival_of_a_task_is_told_in_each_of_its_messages(name: str) -> None:
    # Every sentence begins with a capital: three things are told, after an opening.
    rival = {"demo-topic": "demo-place", "demo-mood": "demo-request"}
    rival |= {other: own for own, other in rival.items()}
    banks = {one: _patterns(one) for one in DEMO_NAMES}
    for row in load_task(name).train[:100]:
        told = {one for one, patterns in banks.items() if any(p.search(row.text) for p in patterns)}
        assert {name, rival[name]} <= told
        assert len(told) == 3


def _patterns(name: str) -> list[re.Pattern[str]]:
    sentences = [one for several in _bank(name).sentences.values() for one in several]
    return [
        re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(one)), re.IGNORECASE) for one in sentences
    ]


@each_task
def test_counting_words_learns_a_task_but_not_perfectly(name: str) -> None:
    # Naive Bayes: learnable from the words alone, and yet the other things told mislead it.
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
