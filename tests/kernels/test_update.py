"""Adding an update to the past, and shrinking one."""

from __future__ import annotations

import pytest
import torch

from ella_cli.errors import SettingsError, ShapeError
from ella_cli.kernels import add_update, fused, shrink
from ella_cli.kernels import update as update_module
from tests.kernels.truth import far_apart_rows, make_case, relative


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several blocks, the last one short.
    for module, limit in ((fused, "BLOCK_BYTES"), (update_module, "CALL_BYTES")):
        monkeypatch.setattr(module, limit, 7 * 53 * 4)


@pytest.mark.parametrize("transposed", [False, True])
def test_an_update_is_added_in_place(transposed: bool) -> None:
    case = make_case(37, 53, 5, 3)
    past = torch.randn(37, 53)
    truth = past.double() - 0.3 * (case.b.double() @ case.a.double())
    past = past.T.contiguous().T if transposed else past
    add_update(past, case.b.requires_grad_(), case.a, -0.3)
    assert relative(past, truth) < 1e-6


def test_half_precision_factors_are_added_in_float32() -> None:
    case = make_case(37, 53, 5, 3)
    past = torch.zeros(37, 53)
    b, a = case.b.bfloat16(), case.a.bfloat16()
    add_update(past, b, a, 1.0)
    assert relative(past, b.double() @ a.double()) < 1e-6


def test_a_past_that_would_round_each_sum_is_refused() -> None:
    case = make_case(4, 5, 2, 1)
    with pytest.raises(ShapeError, match="bfloat16"):
        add_update(torch.zeros(4, 5, dtype=torch.bfloat16), case.b, case.a, 1.0)
    with pytest.raises(ShapeError, match="does not fit"):
        add_update(torch.zeros(5, 4), case.b, case.a, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inplace", [False, True])
def test_shrinking_divides_by_one_plus_lambda_times_the_energy(
    inplace: bool, dtype: torch.dtype
) -> None:
    update, past = torch.randn(37, 53).to(dtype), torch.randn(37, 53)
    truth = update.double() / (1 + 3.0 * past.double() ** 2)
    before = update.clone()
    found = shrink(update, past, 3.0, inplace=inplace)
    assert found.dtype == dtype
    assert relative(found, truth) < {torch.bfloat16: 4e-3}.get(dtype, 1e-6)
    assert (found is update) == inplace
    assert torch.equal(update, found if inplace else before)


def test_the_shrunk_update_is_the_least_of_its_objective() -> None:
    update, past = torch.randn(6, 7).double(), torch.randn(6, 7).double()
    x = shrink(update, past, 2.0).requires_grad_()
    (0.5 * (x - update).square().sum() + (x * past).square().sum()).backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-12


def test_without_lambda_nothing_shrinks() -> None:
    update, past = torch.randn(6, 7), torch.randn(6, 7)
    assert torch.equal(shrink(update, past, 0.0), update)


def test_a_past_beyond_2_to_the_31_elements_is_reached() -> None:
    past = far_apart_rows()
    past.fill_(2.0)
    assert torch.equal(shrink(torch.full((3, 5), 9.0), past, 2.0), torch.ones(3, 5))


def test_what_cannot_be_shrunk_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"update \(2, 3\).*W_past \(3, 2\)"):
        shrink(torch.ones(2, 3), torch.ones(3, 2), 1.0)
    for lam in (-1.0, float("inf"), float("nan")):
        with pytest.raises(SettingsError, match="λ is"):
            shrink(torch.ones(2, 3), torch.ones(2, 3), lam)
