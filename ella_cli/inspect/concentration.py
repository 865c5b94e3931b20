"""How energy is spread over coordinates: percentiles, shares of the top, Gini.

One module is exact: its coordinates are sorted. All modules together are never in memory at once;
their quantiles come from logarithmic bins 0.1% wide (the float's exponent and first ten bits of
its mantissa), so they are within 0.1%, and counts, sums, norms and the maximum are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
TOP_PERCENT = (0.1, 1.0, 10.0)

_BIN_SHIFT = 13
_BINS = 1 << (31 - _BIN_SHIFT)
_BLOCK = 1 << 20

Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class Concentration:
    """Of E ≥ 0 over `count` coordinates. Shares are of ΣE², what the penalty weighs with.

    `percentiles` and `top_shares` are keyed by the percentage. `gini` is of E: 0 if all
    coordinates are equal, 1 if one holds everything.
    """

    count: int
    norm: float
    largest: float
    mean: float
    percentiles: dict[float, float]
    top_shares: dict[float, float]
    gini: float


@dataclass(eq=False)
class Bins:
    """What is kept of the coordinates seen so far: 6 MB, however many they are."""

    counts: NDArray[numpy.int64] = field(default_factory=lambda: numpy.zeros(_BINS, numpy.int64))
    sums: Floats = field(default_factory=lambda: numpy.zeros(_BINS))
    squares: Floats = field(default_factory=lambda: numpy.zeros(_BINS))
    largest: float = 0.0

    def add(self, energy: NDArray[numpy.float32]) -> Concentration:
        """Sorts `energy` (f32, ≥ 0, one axis) in place, adds it, and gives its own figures."""
        energy.sort()
        ranked = 0.0
        total = square = 0.0
        for start in range(0, energy.size, _BLOCK):
            block = energy[start : start + _BLOCK]
            exact = block.astype(numpy.float64)
            total += float(exact.sum())
            square += float(exact @ exact)
            ranked += float(numpy.arange(start + 1, start + 1 + block.size) @ exact)
            self._bin(block, exact)
        largest = float(energy[-1]) if energy.size else 0.0
        self.largest = max(self.largest, largest)
        return Concentration(
            count=energy.size,
            norm=float(numpy.sqrt(square)),
            largest=largest,
            mean=total / energy.size if energy.size else 0.0,
            percentiles={p: _sorted_quantile(energy, p / 100) for p in PERCENTILES},
            top_shares={p: _sorted_share(energy, p / 100, square) for p in TOP_PERCENT},
            gini=_gini(ranked, total, energy.size),
        )

    def total(self) -> Concentration:
        count = int(self.counts.sum())
        total, square = float(self.sums.sum()), float(self.squares.sum())
        before = numpy.cumsum(self.counts) - self.counts
        # Ranks in a bin are before + 1 ... before + counts: all its members take their mean.
        ranked = float(((before + (self.counts + 1) / 2) * self.sums).sum())
        return Concentration(
            count=count,
            norm=float(numpy.sqrt(square)),
            largest=self.largest,
            mean=total / count if count else 0.0,
            percentiles={p: self._quantile(p / 100, count) for p in PERCENTILES},
            top_shares={p: self._share(p / 100, count, square) for p in TOP_PERCENT},
            gini=_gini(ranked, total, count),
        )

    def _bin(self, block: NDArray[numpy.float32], exact: Floats) -> None:
        # The bits of floats ≥ 0 are ordered as the floats are, so sorted values fill bins in turn.
        bins = block.view(numpy.uint32) >> _BIN_SHIFT
        starts = numpy.concatenate(([0], numpy.flatnonzero(numpy.diff(bins)) + 1))
        filled = bins[starts]
        self.counts[filled] += numpy.diff(numpy.append(starts, block.size))
        self.sums[filled] += numpy.add.reduceat(exact, starts)
        self.squares[filled] += numpy.add.reduceat(exact * exact, starts)

    def _quantile(self, share: float, count: int) -> float:
        if count == 0:
            return 0.0
        position = share * (count - 1)
        low = int(position)
        below, above = self._at(low), self._at(min(low + 1, count - 1))
        return below + (above - below) * (position - low)

    def _at(self, rank: int) -> float:
        """The value of that rank, counted from 0, as its bin's mean."""
        index = int(numpy.searchsorted(numpy.cumsum(self.counts), rank, "right"))
        return float(self.sums[index] / self.counts[index])

    def _share(self, share: float, count: int, square: float) -> float:
        if square == 0:
            return 0.0
        wanted = _top_count(share, count)
        counts, squares = self.counts[::-1], self.squares[::-1]
        seen = numpy.cumsum(counts)
        index = int(numpy.searchsorted(seen, wanted))
        missing = wanted - (int(seen[index]) - int(counts[index]))
        part = squares[index] * missing / counts[index]
        return float((squares[:index].sum() + part) / square)


def _top_count(share: float, count: int) -> int:
    return min(count, max(1, round(share * count)))


def _sorted_quantile(ranked: NDArray[numpy.float32], share: float) -> float:
    if ranked.size == 0:
        return 0.0
    position = share * (ranked.size - 1)
    low = int(position)
    high = min(low + 1, ranked.size - 1)
    below, above = float(ranked[low]), float(ranked[high])
    return below + (above - below) * (position - low)


def _sorted_share(ranked: NDArray[numpy.float32], share: float, square: float) -> float:
    if square == 0:
        return 0.0
    top = 0.0
    for start in range(ranked.size - _top_count(share, ranked.size), ranked.size, _BLOCK):
        exact = ranked[start : start + _BLOCK].astype(numpy.float64)
        top += float(exact @ exact)
    return top / square


def _gini(ranked: float, total: float, count: int) -> float:
    if total == 0:
        return 0.0
    return 2 * ranked / (count * total) - (count + 1) / count
