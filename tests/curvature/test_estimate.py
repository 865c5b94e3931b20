"""Moments against per-example gradients built outright in float64; truncation against its trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ella_cli.curvature.estimate import LowRank, Moments, fisher_probe, low_rank
from ella_cli.curvature.sketch import PsdSum


def _whole(width: int) -> PsdSum:
    return PsdSum(torch.zeros(width, width))


def _low_rank(matrix: Tensor, rank: int, shrinkage: float) -> LowRank:
    """Of twice the matrix, whose scale is a half."""
    return low_rank(PsdSum(2 * matrix), 2 * float(matrix.trace()), 0.5, rank, shrinkage)


def test_moments_are_those_of_each_examples_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 11, generator=generator)  # (S, T, N)
    g = torch.randn(5, 7, 6, generator=generator)  # (S, T, M)
    g[2, :3] = 0  # padded tokens
    moments = Moments(_whole(6), _whole(11))
    moments.add(x[:2], g[:2])
    moments.add(x[2:], g[2:])
    gradients = torch.einsum("stm,stn->smn", g.double(), x.double())
    rows = torch.einsum("smn,skn->mk", gradients, gradients)
    columns = torch.einsum("smn,smk->nk", gradients, gradients)
    assert torch.allclose(moments.g.kept.double(), rows, rtol=1e-5, atol=1e-4)
    assert torch.allclose(moments.c.kept.double(), columns, rtol=1e-5, atol=1e-4)
    assert moments.square == pytest.approx(float(gradients.square().sum()), rel=1e-5)


def test_a_probe_has_the_second_moment_of_the_fisher_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = torch.tensor([0.7, 0.2, 0.09, 0.01])
    patterns = torch.cartesian_prod(*[torch.tensor([0, 1], dtype=torch.int8)] * 4)  # (16, 4)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: patterns.clone())
    probes = fisher_probe(p.expand(16, 4), torch.Generator()).double()
    moment = probes.T @ probes / 16
    assert torch.allclose(moment, (torch.diag(p) - torch.outer(p, p)).double(), atol=1e-7)
    assert torch.allclose(probes.sum(-1), torch.zeros(16, dtype=torch.float64), atol=1e-6)


def test_probes_come_from_the_generator_and_differ_from_token_to_token() -> None:
    p = torch.rand(50, 9, generator=torch.Generator().manual_seed(0)).softmax(-1)
    one, again, other = (fisher_probe(p, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(torch.unique(one.sign(), dim=0)) > 40


def test_truncation_keeps_the_leading_directions_and_says_what_it_dropped() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator))
    values = torch.tensor([8.0, 4, 2, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
    matrix = (basis * values @ basis.T).float()
    cut = _low_rank(matrix, 3, 0.0)
    assert cut.factor.shape == (9, 3)
    assert cut.dropped == pytest.approx(2 / 16, abs=1e-5)
    best = basis[:, :3] * values[:3] @ basis[:, :3].T
    assert torch.allclose((cut.factor @ cut.factor.T).double(), best, atol=1e-5)
    assert cut.floor == pytest.approx(2 / 9, abs=1e-5)
    whole = _low_rank(matrix, 100, 0.0)
    assert whole.dropped == pytest.approx(0, abs=1e-6)
    assert whole.floor == pytest.approx(0, abs=1e-6)
    assert torch.allclose(whole.factor @ whole.factor.T, matrix, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 100])
def test_shrinkage_keeps_the_trace_and_the_order_of_directions(rank: int) -> None:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    matrix = root @ root.T
    shrunk = _low_rank(matrix, rank, 0.25)
    found = (shrunk.factor @ shrunk.factor.T).double() + shrunk.floor * torch.eye(6)
    assert float(found.trace()) == pytest.approx(float(matrix.trace()), rel=1e-5)
    values = torch.linalg.eigvalsh(matrix.double()).flip(0)
    kept = torch.where(torch.arange(6) < rank, values, 0.0)
    even = (values.sum() - 0.75 * kept.sum()) / 6
    assert torch.allclose(torch.linalg.eigvalsh(found).flip(0), 0.75 * kept + even, rtol=1e-5)


def test_a_matrix_of_zeros_has_a_factor_of_zeros() -> None:
    cut = _low_rank(torch.zeros(4, 4), 2, 0.3)
    assert cut.factor.shape == (4, 1)
    assert cut.dropped == cut.floor == 0
    assert not cut.factor.any()
