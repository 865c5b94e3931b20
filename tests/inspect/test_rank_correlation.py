from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ella_cli.inspect.rank_correlation import LEAST_PAIRS, rank_correlation, ranks

VALUES = st.lists(st.integers(-5, 5).map(float), min_size=LEAST_PAIRS, max_size=20)


def midranks(values: list[float]) -> list[float]:
    """Counting, not sorting: those below, and half of those equal."""
    return [sum(v < w for v in values) + (values.count(w) + 1) / 2 for w in values]


@given(VALUES)
@settings(deadline=None, max_examples=50)
def test_ties_take_their_mean_rank(values: list[float]) -> None:
    assert ranks(values) == midranks(values)


@given(VALUES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_rho_is_pearsons_correlation_of_the_ranks(values: list[float], random: object) -> None:
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    found = rank_correlation("x", values, other)
    if len(set(values)) == 1:
        assert found.rho is None
        assert "same in all" in found.reason
    else:
        expected = numpy.corrcoef(midranks(values), midranks(other))[0, 1]
        assert found.rho == pytest.approx(expected, abs=1e-9)


def test_nothing_is_claimed_below_eight_pairs() -> None:
    seven = [float(i) for i in range(LEAST_PAIRS - 1)]
    found = rank_correlation("x", seven, seven)
    assert (found.n, found.rho) == (7, None)
    assert "below 8" in found.reason


def test_pairs_with_a_gap_do_not_count() -> None:
    x = [float(i) for i in range(9)]
    y: list[float | None] = [*x[:8], None]
    assert rank_correlation("x", x, y).n == 8
    assert rank_correlation("x", x, y).rho == pytest.approx(1)
    assert rank_correlation("x", x, [None, None, *x[2:]]).rho is None
