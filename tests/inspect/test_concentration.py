from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ella_cli.inspect.concentration import PERCENTILES, TOP_PERCENT, Bins, Concentration


def other_route(energy: numpy.ndarray) -> Concentration:
    """Numpy's own quantiles and the pairwise definition of Gini, in f64."""
    e = energy.astype(numpy.float64)
    square = (e**2).sum()
    descending = numpy.sort(e)[::-1]

    def top(percent: float) -> float:
        count = max(1, round(percent / 100 * e.size))
        return float((descending[:count] ** 2).sum() / square) if square else 0.0

    apart = numpy.abs(e[:, None] - e[None, :]).sum()
    return Concentration(
        count=e.size,
        norm=float(numpy.linalg.norm(e)),
        largest=float(e.max()),
        mean=float(e.mean()),
        percentiles={p: float(numpy.quantile(e, p / 100)) for p in PERCENTILES},
        top_shares={p: top(p) for p in TOP_PERCENT},
        gini=float(apart / (2 * e.size**2 * e.mean())) if e.any() else 0.0,
    )


def assert_agree(ours: Concentration, truth: Concentration, *, relative: float) -> None:
    assert ours.count == truth.count
    assert ours.largest == truth.largest
    for name in ("norm", "mean"):
        assert getattr(ours, name) == pytest.approx(getattr(truth, name), rel=1e-12)
    assert ours.gini == pytest.approx(truth.gini, rel=relative, abs=relative)
    assert ours.percentiles == pytest.approx(truth.percentiles, rel=relative, abs=1e-30)
    assert ours.top_shares == pytest.approx(truth.top_shares, rel=relative, abs=1e-12)


ENERGIES = st.lists(st.floats(0, 100, width=32, allow_subnormal=False), min_size=1, max_size=60)


@given(ENERGIES)
@settings(deadline=None, max_examples=60)
def test_one_module_is_exact(values: list[float]) -> None:
    energy = numpy.array(values, numpy.float32)
    assert_agree(Bins().add(energy.copy()), other_route(energy), relative=1e-9)


def test_all_modules_together_are_within_the_stated_tenth_of_a_percent() -> None:
    rng = numpy.random.default_rng(0)
    parts = [numpy.abs(rng.normal(0, s, 700)).astype(numpy.float32) for s in (1e-4, 1e-2, 3.0)]
    bins = Bins()
    for part in parts:
        bins.add(part.copy())
    assert_agree(bins.total(), other_route(numpy.concatenate(parts)), relative=2e-3)


def test_more_coordinates_than_one_block_are_all_counted() -> None:
    energy = numpy.linspace(0, 1, (1 << 20) + 7, dtype=numpy.float32)
    found = Bins().add(energy.copy())
    exact = energy.astype(numpy.float64)
    assert found.norm == pytest.approx(float(numpy.linalg.norm(exact)), rel=1e-12)
    # Of the uniform density on [0, 1], Gini is 1/3 and the median 1/2.
    assert found.gini == pytest.approx(1 / 3, rel=1e-5)
    assert found.percentiles[50.0] == pytest.approx(0.5, rel=1e-6)


def test_equal_coordinates_have_no_concentration_and_one_coordinate_has_all() -> None:
    equal = Bins().add(numpy.full(50, 0.25, numpy.float32))
    assert equal.gini == pytest.approx(0, abs=1e-12)
    assert equal.top_shares[10.0] == pytest.approx(0.1)
    single = numpy.zeros(50, numpy.float32)
    single[7] = 2.0
    one = Bins().add(single)
    assert one.gini == pytest.approx(1 - 1 / 50)
    assert one.top_shares[1.0] == 1.0


def test_a_past_of_zeros_has_zeros_everywhere() -> None:
    bins = Bins()
    for found in (bins.add(numpy.zeros(10, numpy.float32)), bins.total()):
        assert found.norm == found.largest == found.mean == found.gini == 0.0
        assert set(found.top_shares.values()) == {0.0}
