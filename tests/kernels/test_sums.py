"""Value and both gradients against float64, with an upstream gradient that is not 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ella_cli.errors import NonFiniteError, SettingsError, ShapeError
from ella_cli.kernels import Factors, penalty, penalty_many
from tests.kernels.truth import far_apart_rows, float64_truth, make_case, relative

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
    b, a = b.detach().requires_grad_(), a.detach().requires_grad_()
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


@pytest.mark.parametrize("past_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("form", ["eager", "fused", "auto"])
def test_a_dense_past_needs_no_factors(form: str, past_dtype: torch.dtype) -> None:
    case = make_case(130, 61, 5, 9)
    w = case.factors.dense().to(past_dtype)
    truth = float64_truth(case.b, case.a, w, case.scale)
    for found, expected in zip(
        values_and_gradients(case.b, case.a, w, case.scale, form), truth, strict=True
    ):
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_float64_factors_are_summed_in_float64(form: str) -> None:
    case = make_case(30, 20, 3, 4)
    factors = Factors(case.factors.p.double(), case.factors.q.double())
    value, db, da = values_and_gradients(
        case.b.double(), case.a.double(), factors, case.scale, form
    )
    assert value.dtype == torch.float64
    assert relative(value, case.value) < 1e-13
    assert relative(db, case.db) < 1e-13
    assert relative(da, case.da) < 1e-13


@pytest.mark.parametrize("form", FORMS)
def test_each_gradient_is_the_slope_of_the_value(form: str) -> None:
    case = make_case(5, 4, 3, 2)
    b, a = case.b.double().requires_grad_(), case.a.double().requires_grad_()
    factors = Factors(case.factors.p.double(), case.factors.q.double())
    assert torch.autograd.gradcheck(lambda b, a: penalty(b, a, factors, 0.5, form=form), (b, a))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_come_in_the_dtype_of_their_factor(form: str) -> None:
    case = make_case(33, 21, 4, 3)
    b = case.b.bfloat16().requires_grad_()
    a = case.a.half().requires_grad_()
    penalty(b, a, case.factors, 0.1, form=form).backward()
    _, db, da = float64_truth(b.detach(), a.detach(), case.factors.dense(), 0.1)
    assert b.grad is not None
    assert a.grad is not None
    assert b.grad.dtype == torch.bfloat16
    assert a.grad.dtype == torch.float16
    assert relative(b.grad, db) < 4e-3
    assert relative(a.grad, da) < 5e-4


@pytest.mark.parametrize("form", FORMS)
def test_layouts_may_be_transposed_or_strided(form: str) -> None:
    case = make_case(65, 33, 7, 5)
    b = case.b.T.contiguous().T
    a = torch.stack([case.a, case.a], dim=2)[:, :, 1]
    factors = Factors(case.factors.p.T.contiguous().T, case.factors.q.T.contiguous().T)
    value, db, da = values_and_gradients(b, a, factors, case.scale, form)
    assert relative(value, case.value) < 1e-5
    assert relative(db, case.db) < 1e-5
    assert relative(da, case.da) < 1e-5


def test_a_transposed_dense_past_is_read_by_its_strides() -> None:
    case = make_case(65, 33, 7, 5)
    w = case.factors.dense().T.contiguous().T
    value, db, da = values_and_gradients(case.b, case.a, w, case.scale, "fused")
    assert relative(value, case.value) < 1e-5
    assert relative(db, case.db) < 1e-5
    assert relative(da, case.da) < 1e-5


def test_offsets_beyond_2_to_the_31_are_reached() -> None:
    w = far_apart_rows()
    w.copy_(torch.arange(15.0).view(3, 5))
    case = make_case(3, 5, 2, 1)
    truth = float64_truth(case.b, case.a, w.clone(), 1.0)
    for found, expected in zip(
        values_and_gradients(case.b, case.a, w, 1.0, "fused"), truth, strict=True
    ):
        assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_without_past_tasks_the_penalty_is_zero_and_so_are_its_gradients(form: str) -> None:
    case = make_case(9, 7, 3, 0)
    value, db, da = values_and_gradients(case.b, case.a, case.factors, 2.0, form)
    assert value.item() == 0
    assert not db.any()
    assert not da.any()


@pytest.mark.parametrize("form", FORMS)
def test_at_the_start_of_a_task_b_is_zero_and_nothing_pushes(form: str) -> None:
    case = make_case(9, 7, 3, 4)
    value, db, da = values_and_gradients(torch.zeros_like(case.b), case.a, case.factors, 2.0, form)
    assert value.item() == 0
    assert not db.any()
    assert not da.any()


def test_no_modules_cost_nothing() -> None:
    total, values = penalty_many([], [], [], [])
    assert total.item() == 0
    assert values.shape == (0,)


@pytest.mark.parametrize("form", FORMS)
def test_many_modules_are_the_sum_of_each(form: str) -> None:
    # Two of equal shape, which the Gram form stacks, between others.
    shapes = [(20, 30, 4, 3), (7, 9, 2, 1), (20, 30, 4, 3), (5, 6, 2, 0)]
    cases = [make_case(*shape, scale=0.5 + i, seed=i) for i, shape in enumerate(shapes)]
    bs = [case.b.requires_grad_() for case in cases]
    as_ = [case.a.requires_grad_() for case in cases]
    pasts = [case.factors for case in cases]
    total, values = penalty_many(bs, as_, pasts, [case.scale for case in cases], form=form)
    (UPSTREAM * total).backward()
    assert relative(total, torch.stack([case.value for case in cases]).sum()) < 1e-5
    assert not values.requires_grad
    for case, b, a, value in zip(cases[:3], bs, as_, values, strict=False):
        assert b.grad is not None
        assert a.grad is not None
        assert relative(value, case.value) < 1e-5
        assert relative(b.grad / UPSTREAM, case.db) < 1e-5
        assert relative(a.grad / UPSTREAM, case.da) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_a_frozen_factor_takes_no_gradient(form: str) -> None:
    case = make_case(9, 7, 3, 4)
    b = case.b.requires_grad_()
    penalty(b, case.a, case.factors, form=form).backward()
    assert case.a.grad is None
    assert b.grad is not None


@pytest.mark.parametrize("form", FORMS)
def test_huge_values_are_an_error_that_names_the_module(form: str) -> None:
    good, huge = make_case(4, 5, 2, 1), make_case(4, 5, 2, 1)
    with pytest.raises(NonFiniteError, match="module 1"):
        penalty_many(
            [good.b, 1e30 * huge.b],
            [good.a, huge.a],
            [good.factors, huge.factors],
            [1.0, 1.0],
            form=form,
        )


@pytest.mark.parametrize("form", ["eager", "fused"])
def test_an_infinite_gradient_beside_a_finite_value_is_an_error(form: str) -> None:
    b, a = torch.full((1, 1), 1e-19), torch.full((1, 1), 1e-19)
    with pytest.raises(NonFiniteError, match="gradient"):
        penalty(b, a * 1e2, torch.full((1, 1), 1e38), 1e18, form=form)


def test_a_nan_in_the_past_is_an_error() -> None:
    case = make_case(4, 5, 2, 1)
    with pytest.raises(NonFiniteError, match="nan"):
        penalty(case.b, case.a, torch.full((4, 5), float("nan")))


def test_factors_that_do_not_fit_are_named_with_both_shapes() -> None:
    with pytest.raises(ShapeError, match=r"B \(4, 2\) · A \(2, 5\) .* W_past \(4, 6\)"):
        penalty(torch.ones(4, 2), torch.ones(2, 5), torch.ones(4, 6))
    with pytest.raises(ShapeError, match="no product"):
        Factors(torch.ones(4, 2), torch.ones(3, 5))
    with pytest.raises(ShapeError, match="not a float matrix"):
        penalty(torch.ones(4, 2), torch.ones(2, 5), torch.ones(4, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="1 B for 0 pasts"):
        penalty_many([torch.ones(4, 2)], [torch.ones(2, 5)], [], [])


def test_forms_that_cannot_be_taken_are_named() -> None:
    b, a, w = torch.ones(4, 2), torch.ones(2, 5), torch.ones(4, 5)
    with pytest.raises(SettingsError, match="no form 'quick'"):
        penalty(b, a, w, form="quick")
    with pytest.raises(SettingsError, match="'gram' needs the factors"):
        penalty(b, a, w, form="gram")
    with pytest.raises(SettingsError, match="no precision 'bf16'"):
        penalty(b, a, w, precision="bf16")
