"""Value and both gradients against float64, with an upstream gradient that is not 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ella_cli.kernels import Factors, penalty
from tests.kernels.truth import float64_truth, make_case, relative

FORMS = ("eager", "fused", "tiled", "gram", "auto")
UPSTREAM = -1.75
SHAPES = [
    # M, N, R, R_past
    (1, 1, 1, 1),
    (1, 67, 3, 2),
    (71, 1, 5, 4),
    (37, 53, 1, 1),
    (130, 259, 8, 8),
    (65, 33, 7, 45),
    (40, 50, 256, 3),
    (1030, 517, 16, 24),
]


def values_and_gradients(
    b: Tensor, a: Tensor, past: Tensor | Factors, scale: float, form: str
) -> tuple[Tensor, Tensor, Tensor]:
    b, a = b.clone().requires_grad_(), a.clone().requires_grad_()
    value = penalty(b, a, past, scale, form=form)
    (UPSTREAM * value).backward()
    assert b.grad is not None
    assert a.grad is not None
    return value, b.grad / UPSTREAM, a.grad / UPSTREAM


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-N{}-R{}-Rpast{}".format(*s))
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int, int], form: str
) -> None:
    case = make_case(*shape)
    value, db, da = values_and_gradients(case.b, case.a, case.factors, case.scale, form)
    assert value.dtype == torch.float32
    assert relative(value, case.value) < 1e-5
    assert relative(db, case.db) < 1e-5
    assert relative(da, case.da) < 1e-5


@pytest.mark.parametrize("form", ["eager", "fused", "auto"])
def test_a_dense_past_needs_no_factors(form: str) -> None:
    case = make_case(130, 61, 5, 9)
    w = case.factors.dense()
    truth = float64_truth(case.b, case.a, w, case.scale)
    for found, expected in zip(
        values_and_gradients(case.b, case.a, w, case.scale, form), truth, strict=True
    ):
        assert relative(found, expected) < 1e-5
