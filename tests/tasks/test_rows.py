"""Taking some of the rows, and naming them by a fingerprint."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.errors import TaskError
from ella_cli.tasks.rows import Row, Task, balanced_sample, fingerprint, make_task
from ella_cli.tasks.spec import TaskSpec, normal_form

SPEC = TaskSpec(name="t", labels=("a", "b"))


def _rows(count: int, start: int = 0) -> list[Row]:
    return [Row(f"text {i}", "ab"[i % 3 == 0]) for i in range(start, start + count)]


def _task(
    train: list[Row],
    test: list[Row],
    limit: int | None = None,
    limit_test: int | None = None,
    validation: int = 0,
    seed: int = 0,
) -> Task:
    return make_task(
        SPEC,
        train,
        test,
        limit=limit,
        limit_test=limit_test,
        validation=validation,
        seed=seed,
        origin="here",
    )


row_lists = st.lists(st.builds(Row, st.text(max_size=3), st.sampled_from("abcd")), max_size=30)


@given(row_lists, st.integers(1, 12), st.integers(0, 3))
def test_a_sample_is_part_of_the_rows_and_as_balanced_as_they_allow(
    rows: list[Row], count: int, seed: int
) -> None:
    sample = balanced_sample(rows, count, seed)
    assert len(sample) == min(count, len(rows))
    assert not Counter(sample) - Counter(rows)
    there, taken = Counter(r.answer for r in rows), Counter(r.answer for r in sample)
    # A label has fewer rows than the one with most only if it has no more to give.
    for label in there:
        assert taken[label] == there[label] or taken[label] >= max(taken.values()) - 1


@given(row_lists, st.integers(1, 12))
def test_a_larger_sample_holds_the_smaller_one(rows: list[Row], count: int) -> None:
    small = balanced_sample(rows, count, 0)
    large = balanced_sample(rows, min(count + 3, len(rows) - 1) if rows else count, 0)
    if len(small) < len(large) < len(rows):
        assert large[: len(small)] == small


def test_a_sample_depends_on_its_seed_and_on_nothing_else() -> None:
    rows = _rows(60)
    assert balanced_sample(rows, 20, 1) == balanced_sample(rows, 20, 1)
    assert balanced_sample(rows, 20, 1) != balanced_sample(rows, 20, 2)


def test_runs_with_different_seeds_are_scored_on_the_same_rows() -> None:
    first = _task(_rows(60), _rows(40, 100), limit=10, seed=1)
    second = _task(_rows(60), _rows(40, 100), limit=10, seed=2)
    assert first.train != second.train
    assert first.test == second.test
    assert len(first.train) == len(first.test) == 10


def test_test_rows_may_have_a_limit_of_their_own() -> None:
    task = _task(_rows(60), _rows(40, 100), limit=10, limit_test=20)
    assert (len(task.train), len(task.test)) == (10, 20)
    task = _task(_rows(60), _rows(40, 100), limit_test=20)
    assert (len(task.train), len(task.test)) == (60, 20)


def test_held_out_rows_come_from_train_and_are_never_seen_in_it() -> None:
    # Every text is there twice, the second time in another spelling.
    train = [*_rows(30), *(Row(f"TEXT  {i}", "b") for i in range(30))]
    task = _task(train, _rows(10, 100), validation=12)
    held = {normal_form(row.text) for row in task.test}
    assert len(task.test) == 12
    assert held <= {normal_form(row.text) for row in train}
    assert not held & {normal_form(row.text) for row in task.train}
    assert len(task.train) == 60 - 2 * len(held)


def test_the_test_rows_are_not_looked_at_when_rows_are_held_out() -> None:
    one = _task(_rows(50), _rows(10, 100), validation=12)
    other = _task(_rows(50), _rows(3, 200), validation=12)
    assert (one.train, one.test) == (other.train, other.test)


def test_more_rows_than_there_are_cannot_be_held_out() -> None:
    with pytest.raises(TaskError, match="has 5 train rows, so 5 cannot be held out"):
        _task(_rows(5), _rows(5, 100), validation=5)


def test_test_rows_that_are_also_in_train_are_warned_of() -> None:
    task = _task(_rows(20), [Row(" Text  3 ", "a"), *_rows(4, 100)])
    assert task.warnings == ("1 of 5 test rows are also in train; scores will be too high",)
    assert _task(_rows(20), _rows(4, 100)).warnings == ()


def test_a_split_without_rows_is_an_error() -> None:
    with pytest.raises(TaskError, match="no test rows"):
        _task(_rows(3), [])


@given(row_lists, row_lists)
def test_the_fingerprint_changes_with_any_row_order_or_split(
    train: list[Row], test: list[Row]
) -> None:
    name = fingerprint(train, test)
    assert name == fingerprint(list(train), list(test))
    assert name != fingerprint([*train, Row("x", "a")], test)
    assert name != fingerprint(train, [*test, Row("x", "a")])
    if train:
        changed = [Row(train[0].text + " ", train[0].answer), *train[1:]]
        assert name != fingerprint(changed, test)
        assert name != fingerprint(train[1:], [train[0], *test])
    if train != train[::-1]:
        assert name != fingerprint(train[::-1], test)


def test_the_fingerprint_tells_where_a_text_ends() -> None:
    assert fingerprint([Row("ab", "c")], []) != fingerprint([Row("a", "bc")], [])
