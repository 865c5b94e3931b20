"""Moments against per-example gradients built outright in float64; truncation against its trace."""

from __future__ import annotations

import pytest
import torch

from ella_cli.curvature.estimate import Moments, truncated


def test_moments_are_those_of_each_examples_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 11, generator=generator)  # (S, T, N)
    g = torch.randn(5, 7, 6, generator=generator)  # (S, T, M)
    g[2, :3] = 0  # padded tokens
    moments = Moments.of(6, 11, torch.device("cpu"))
    moments.add(x[:2], g[:2])
    moments.add(x[2:], g[2:])
    gradients = torch.einsum("stm,stn->smn", g.double(), x.double())
    rows = torch.einsum("smn,skn->mk", gradients, gradients)
    columns = torch.einsum("smn,smk->nk", gradients, gradients)
    assert torch.allclose(moments.g.double(), rows, rtol=1e-5, atol=1e-4)
    assert torch.allclose(moments.c.double(), columns, rtol=1e-5, atol=1e-4)
    assert moments.square == pytest.approx(float(gradients.square().sum()), rel=1e-5)


def test_truncation_keeps_the_leading_directions_and_says_what_it_dropped() -> None:
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64, generator=generator))
    values = torch.tensor([8.0, 4, 2, 1, 1, 0, 0, 0, 0], dtype=torch.float64)
    matrix = (basis * values @ basis.T).float()
    cut = truncated(matrix, 3)
    assert cut.factor.shape == (9, 3)
    assert cut.dropped == pytest.approx(2 / 16, abs=1e-5)
    best = basis[:, :3] * values[:3] @ basis[:, :3].T
    assert torch.allclose((cut.factor @ cut.factor.T).double(), best, atol=1e-5)
    whole = truncated(matrix, 100)
    assert whole.dropped == pytest.approx(0, abs=1e-6)
    assert torch.allclose(whole.factor @ whole.factor.T, matrix, atol=1e-5)


def test_a_matrix_of_zeros_has_a_factor_of_zeros() -> None:
    cut = truncated(torch.zeros(4, 4), 2)
    assert cut.factor.shape == (4, 1)
    assert cut.dropped == 0
    assert not cut.factor.any()
