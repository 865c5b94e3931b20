"""Spearman's rank correlation, claimed only where there are enough pairs to claim anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Below this a perfect ranking by chance is not rare enough, and one pair turns the figure over.
LEAST_PAIRS = 8


@dataclass(frozen=True)
class RankCorrelation:
    """`rho` is None where it is not claimed; `reason` then says why."""

    predictor: str
    n: int
    rho: float | None
    reason: str = ""


def rank_correlation(
    predictor: str, x: Sequence[float | None], y: Sequence[float | None]
) -> RankCorrelation:
    """Over the pairs where both are known; ties take their mean rank."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    n = len(pairs)
    if n < LEAST_PAIRS:
        return RankCorrelation(predictor, n, None, f"n = {n} is below {LEAST_PAIRS}")
    left, right = ranks([a for a, _ in pairs]), ranks([b for _, b in pairs])
    middle = (n + 1) / 2
    spread_left = math.fsum((r - middle) ** 2 for r in left)
    spread_right = math.fsum((r - middle) ** 2 for r in right)
    if spread_left == 0 or spread_right == 0:
        constant = predictor if spread_left == 0 else "the accuracy lost"
        return RankCorrelation(predictor, n, None, f"{constant} is the same in all {n} pairs")
    product = math.fsum((a - middle) * (b - middle) for a, b in zip(left, right, strict=True))
    return RankCorrelation(predictor, n, product / math.sqrt(spread_left * spread_right))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for index in order[start:stop]:
            result[index] = (start + 1 + stop) / 2
        start = stop
    return result
