"""Which rows an epoch has, and in what order."""

from __future__ import annotations

from collections import Counter

import pytest

from ella_cli.training.row_order import RowOrder

LENGTHS = [5, 9, 2, 7, 3, 8, 6, 4, 1, 10]


def _order(epoch: int = 0, seed: int = 0, group: int | None = 4) -> list[int]:
    return list(RowOrder(LENGTHS, seed, lambda: epoch, group))


@pytest.mark.parametrize("group", [None, 4])
def test_each_row_comes_once_an_epoch_in_the_order_of_its_seed(group: int | None) -> None:
    first = _order(group=group)
    assert sorted(first) == list(range(len(LENGTHS)))
    assert first == _order(group=group)
    assert first != _order(epoch=1, group=group)
    assert first != _order(seed=1, group=group)


def test_what_a_last_step_lacks_are_rows_of_no_answer() -> None:
    padded = RowOrder(LENGTHS, 0, lambda: 0, 4, at_once=4)
    assert len(padded) == 12
    assert list(padded) == [*_order(), 10, 10]
    assert Counter(padded)[10] == 2
    assert len(RowOrder([*LENGTHS, 1, 1], 0, lambda: 0, 4, at_once=4)) == 12
