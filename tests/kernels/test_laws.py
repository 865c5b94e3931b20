"""What holds for every update and every past."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ella_cli.kernels import Factors, add_update, penalty, shrink
from tests.kernels.truth import Case, make_case, relative

SMALL = settings(deadline=None, max_examples=40)
FORMS = pytest.mark.parametrize("form", ["eager", "fused", "tiled", "gram", "auto"])
sizes = st.integers(1, 12)
cases = st.builds(make_case, sizes, sizes, sizes, sizes, st.floats(0.1, 4), st.integers(0, 2**16))


def size_of(case: Case) -> float:
    """The loss without any cancellation inside BA or PQ: what rounding is relative to."""
    terms = (case.b.abs() @ case.a.abs()) * (case.factors.p.abs() @ case.factors.q.abs())
    return float((case.scale * terms).double().square().sum())


@FORMS
@given(case=cases, factor=st.floats(-8, 8))
@SMALL
def test_scaling_b_by_c_scales_the_penalty_by_c_squared(
    form: str, case: Case, factor: float
) -> None:
    once = penalty(case.b, case.a, case.factors, case.scale, form=form).double()
    scaled = penalty(factor * case.b, case.a, case.factors, case.scale, form=form).double()
    assert abs(scaled - factor**2 * once) <= 2e-6 * (1 + factor**2) * size_of(case)


@FORMS
@given(case=cases)
@SMALL
def test_the_penalty_is_zero_where_supports_are_disjoint(form: str, case: Case) -> None:
    half = case.b.shape[0] // 2
    b, p = case.b.clone(), case.factors.p.clone()
    b[:half], p[half:] = 0, 0
    assert penalty(b, case.a, Factors(p, case.factors.q), form=form).item() == 0


@FORMS
@given(case=cases)
@SMALL
def test_dense_and_factored_agree_with_float64(form: str, case: Case) -> None:
    b, a = case.b.clone().requires_grad_(), case.a.clone().requires_grad_()
    value = penalty(b, a, case.factors, case.scale, form=form)
    value.backward()
    assert b.grad is not None
    dense = penalty(case.b, case.a, case.factors.dense(), case.scale)
    value = value.detach()
    assert abs(value.double() - dense.double()) <= 2e-6 * size_of(case)
    assert abs(value.double() - case.value) <= 2e-6 * size_of(case)
    # Euler: the loss is homogeneous of degree 2 in B.
    assert abs((b.detach() * b.grad).double().sum() - 2 * case.value) <= 1e-5 * size_of(case)


@FORMS
@given(case=cases)
@SMALL
def test_the_sign_of_the_past_does_not_matter(form: str, case: Case) -> None:
    negative = Factors(-case.factors.p, case.factors.q)
    first = penalty(case.b, case.a, case.factors, form=form)
    second = penalty(case.b, case.a, negative, form=form)
    assert abs(first - second) <= 2e-6 * size_of(case) / case.scale**2


@given(case=cases, other=st.integers(0, 2**16))
@SMALL
def test_the_past_does_not_depend_on_the_order_of_addition(case: Case, other: int) -> None:
    (rows, rank), columns = case.b.shape, case.a.shape[1]
    second = make_case(rows, columns, rank, 1, seed=other)
    forward, backward = torch.zeros(rows, columns), torch.zeros(rows, columns)
    for past, order in ((forward, (case, second)), (backward, (second, case))):
        for update in order:
            add_update(past, update.b, update.a, update.scale)
    size = (
        case.scale * (case.b.abs() @ case.a.abs()).norm() + (second.b.abs() @ second.a.abs()).norm()
    )
    assert (forward - backward).norm() <= 1e-6 * size


@given(case=cases, lam=st.floats(0, 1e6))
@SMALL
def test_shrinking_never_lengthens_nor_turns_an_update_over(case: Case, lam: float) -> None:
    update, past = case.b @ case.a, case.factors.dense()
    shrunk = shrink(update, past, lam)
    assert bool((shrunk.abs() <= update.abs()).all())
    assert bool((shrunk * update >= 0).all())
    assert relative(shrunk * (1 + lam * past.double() ** 2), update) < 1e-5
