"""Leading eigenvectors from a sum kept thin, against the sum built whole in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ella_cli.curvature import sketch
from ella_cli.curvature.sketch import PsdSum, PsdSums


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> PsdSums:
    """Sums that are thin from a width of 20 on, at 16 columns."""
    monkeypatch.setattr(sketch, "WIDEST_WHOLE", 20)
    monkeypatch.setattr(sketch, "COLUMNS", 16)
    return PsdSums(rank=4, seed=0)


def _fill(total: PsdSum, examples: int, fall: float, seed: int = 0) -> Tensor:
    """Adds `examples` matrices whose directions matter less and less; returns the sum in f64."""
    width = len(total.kept)
    generator = torch.Generator().manual_seed(seed)
    scales = fall ** torch.arange(width)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    built = torch.zeros(width, width, dtype=torch.float64)
    for _ in range(examples):
        tokens = torch.randn(2, 3, width, generator=generator) * scales @ basis.T
        root = torch.randn(2, 3, 3, generator=generator)
        gram = root @ root.mT
        total.add(tokens, gram)
        built += torch.einsum("stm,stu,sun->mn", tokens.double(), gram.double(), tokens.double())
    return built


def test_a_narrow_sum_is_kept_whole_and_a_wide_one_is_not(thin: PsdSums) -> None:
    cpu = torch.device("cpu")
    narrow, wide, other = thin.of(20, cpu), thin.of(40, cpu), thin.of(40, cpu)
    assert narrow.test is None
    assert narrow.kept.shape == (20, 20)
    assert wide.kept.shape == (40, 16)
    assert wide.test is other.test  # one for all of a width
    built = _fill(narrow, 5, 0.7)
    assert torch.allclose(narrow.kept.double(), built, rtol=1e-4, atol=1e-5)


def test_a_sum_of_low_rank_comes_back_exactly(thin: PsdSums) -> None:
    total = thin.of(40, torch.device("cpu"))
    built = _fill(total, 2, 1.0)  # 2 · 2 · 3 tokens: rank 12
    values, vectors = total.leading()
    assert torch.allclose(vectors * values @ vectors.T, built, rtol=1e-3, atol=1e-3)
    assert torch.allclose(vectors.T @ vectors, torch.eye(16, dtype=torch.float64), atol=1e-8)


def test_of_a_sum_of_full_rank_the_leading_directions_come_back(thin: PsdSums) -> None:
    total = thin.of(40, torch.device("cpu"))
    built = _fill(total, 30, 0.7)
    exact, _ = torch.linalg.eigh(built)
    values, vectors = total.leading()
    assert torch.allclose(values[:4], exact.flip(0)[:4], rtol=0.01)
    # What they say of the sum is what it says of itself, and never more than there is.
    assert torch.allclose((vectors.T @ built @ vectors).diag()[:4], values[:4], rtol=0.01)
    assert (values <= exact.flip(0)[:16] * (1 + 1e-6) + 1e-6).all()
    assert (values >= 0).all()


def test_nothing_added_has_one_direction_of_no_weight(thin: PsdSums) -> None:
    values, vectors = thin.of(40, torch.device("cpu")).leading()
    assert values.tolist() == [0]
    assert vectors.shape == (40, 1)
