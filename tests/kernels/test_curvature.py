"""½ tr(ΔWᵀ G ΔW C), summed over tasks, against float64 by another route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ella_cli.errors import NonFiniteError, ShapeError
from ella_cli.kernels import CurvaturePlan, Kronecker, Others, curvature, plan_curvature
from ella_cli.plan.operations import OperationCounter
from tests.kernels.truth import relative


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _terms(rows: int, columns: int, ranks: list[tuple[int, int]], seed: int) -> list[Kronecker]:
    return [
        Kronecker(
            _normal(rows, ku, seed=seed + 2 * i),
            _normal(columns, kv, seed=seed + 2 * i + 1),
            # The first term has no floors, so that both kinds are met.
            u_floor=0.3 * i,
            v_floor=0.7 * i,
        )
        for i, (ku, kv) in enumerate(ranks)
    ]


def _truth(b: Tensor, a: Tensor, terms: list[Kronecker], scale: float) -> tuple[Tensor, ...]:
    """With ΔW, G and C built, in float64; the gradients by autograd through the trace."""
    b, a = b.double().requires_grad_(), a.double().requires_grad_()
    update = scale * torch.einsum("mr,rn->mn", b, a)
    value = torch.zeros((), dtype=torch.float64)
    for term in terms:
        g = torch.einsum("mk,lk->ml", term.u.double(), term.u.double())
        c = torch.einsum("nk,lk->nl", term.v.double(), term.v.double())
        g += term.u_floor * torch.eye(len(g))
        c += term.v_floor * torch.eye(len(c))
        value = value + 0.5 * torch.einsum("mn,ml,lk,kn->", update, g, update, c)
    return value.detach(), *torch.autograd.grad(value, (b, a))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("shape", "rank", "tasks"),
    [((37, 29), 4, 1), ((11, 29), 3, 3), ((1, 29), 2, 2), ((29, 1), 2, 1), ((5, 5), 9, 2)],
)
def test_value_and_gradients_agree_with_float64(
    shape: tuple[int, int], rank: int, tasks: int, device: str
) -> None:
    terms = _terms(*shape, [(7, 3 + i) for i in range(tasks)], seed=1)
    b, a = _normal(shape[0], rank, seed=90), _normal(rank, shape[1], seed=91)
    value, db, da = _truth(b, a, terms, 0.75)
    b, a = (one.to(device).requires_grad_() for one in (b, a))
    there = [replace(term, u=term.u.to(device), v=term.v.to(device)) for term in terms]
    total, values = plan_curvature([there], [shape], [0.75])([b], [a])
    (3.0 * total).backward()  # type: ignore[no-untyped-call]
    assert relative(total.cpu(), value) < 1e-5
    assert relative(values[0].cpu(), value) < 1e-5
    assert b.grad is not None
    assert a.grad is not None
    assert relative(b.grad.cpu(), 3 * db) < 1e-5
    assert relative(a.grad.cpu(), 3 * da) < 1e-5


def test_modules_of_all_kinds_at_once_are_the_sum_of_each() -> None:
    shapes = [(37, 29), (11, 29), (37, 29), (11, 29), (8, 8)]
    # The second (37, 29) knows fewer tasks; the last module was not measured at all.
    counts = [2, 2, 1, 2, 0]
    modules = [
        _terms(*shape, [(5, 4)] * count, seed=10 * i)
        for i, (shape, count) in enumerate(zip(shapes, counts, strict=True))
    ]
    bs = [_normal(shape[0], 3, seed=200 + i) for i, shape in enumerate(shapes)]
    as_ = [_normal(3, shape[1], seed=300 + i) for i, shape in enumerate(shapes)]
    scales = [1.0, 2.0, 0.5, 1.0, 1.0]
    total, values = plan_curvature(modules, shapes, scales)(bs, as_)
    each = [
        _truth(b, a, terms, scale)[0]
        for b, a, terms, scale in zip(bs[:4], as_[:4], modules[:4], scales[:4], strict=True)
    ]
    assert float(values[4]) == 0
    for found, expected in zip(values[:4], each, strict=True):
        assert relative(found, expected) < 1e-5
    assert relative(total, torch.stack(each).sum()) < 1e-5


def test_modules_of_one_shape_may_have_several_ranks() -> None:
    terms = [_terms(11, 29, [(5, 4), (3, 6)], seed=10 * i) for i in range(3)]
    ranks = [4, 2, 3]
    bs = [_normal(11, rank, seed=200 + rank).requires_grad_() for rank in ranks]
    as_ = [_normal(rank, 29, seed=300 + rank).requires_grad_() for rank in ranks]
    total, values = plan_curvature(terms, [(11, 29)] * 3, [1.0, 2.0, 0.5])(bs, as_)
    total.backward()  # type: ignore[no-untyped-call]
    for i, (b, a, scale) in enumerate(zip(bs, as_, [1.0, 2.0, 0.5], strict=True)):
        value, db, da = _truth(b.detach(), a.detach(), terms[i], scale)
        assert relative(values[i], value) < 1e-5
        assert b.grad is not None
        assert a.grad is not None
        assert relative(b.grad, db) < 1e-5
        assert relative(a.grad, da) < 1e-5


def test_gradcheck_in_float64() -> None:
    terms = [
        replace(t, u=t.u.double(), v=t.v.double()) for t in _terms(6, 5, [(3, 2), (2, 4)], seed=5)
    ]
    plan = plan_curvature([terms], [(6, 5)], [1.5])
    b = _normal(6, 2, seed=1).double().requires_grad_()
    a = _normal(2, 5, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b, a: plan([b], [a])[0], (b, a))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), rank=st.integers(1, 4),
    factor=st.floats(0.1, 10), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_it_is_a_quadratic_form_that_is_never_negative(
    rows: int, columns: int, rank: int, factor: float, seed: int
) -> None:
    terms = _terms(rows, columns, [(3, 2), (1, 5)], seed=seed)
    plan = plan_curvature([terms], [(rows, columns)], [1.0])
    b, a = _normal(rows, rank, seed=seed + 7), _normal(rank, columns, seed=seed + 8)
    one, _ = plan([b], [a])
    scaled, _ = plan([factor * b], [a])
    assert float(one) >= 0
    assert float(scaled) == pytest.approx(factor**2 * float(one), rel=1e-4)


def test_what_does_not_fit_is_named() -> None:
    terms = _terms(6, 5, [(2, 2)], seed=0)
    with pytest.raises(ShapeError, match=r"q_proj is \(5, 6\), its curvature \(6, 5\)"):
        plan_curvature([terms], [(5, 6)], [1.0], names=["q_proj"])
    plan = plan_curvature([terms], [(6, 5)], [1.0], names=["q_proj"])
    with pytest.raises(ShapeError, match=r"q_proj: B \(4, 1\)"):
        plan([torch.ones(4, 1)], [torch.ones(1, 5)])
    with pytest.raises(ShapeError, match="0 B and 0 A for a plan of 1"):
        plan([], [])
    with pytest.raises(NonFiniteError, match="q_proj"):
        plan([torch.full((6, 1), 1e30)], [torch.ones(1, 5)])
    with pytest.raises(ShapeError, match=r"U is torch\.int64"):
        Kronecker(torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2))


def test_no_modules_are_no_penalty() -> None:
    total, values = plan_curvature([], [], [])([], [])
    assert float(total) == 0
    assert values.shape == (0,)


def _with_directions(term: Kronecker, task: int, size: tuple[int, int, int]) -> Kronecker:
    return replace(term, task=task, directions=_normal(*size, seed=sum(size) + task))


def _moved(update: Tensor, term: Kronecker) -> Tensor:
    """⟨ΔW, direction⟩ of every direction of the term, (D,) f64, with the directions built."""
    assert term.directions is not None
    _, rows, columns = term.directions.shape
    u, v = term.u[:, :rows].double(), term.v[:, :columns].double()
    dense = torch.einsum("mk,dkl,nl->dmn", u, term.directions.double(), v)
    return torch.einsum("dmn,mn->d", dense, update)


def test_directions_add_up_over_modules_before_they_are_squared() -> None:
    # Two modules of one shape, one of another; the last one lacks task 0, the second directions.
    shapes = [(11, 29), (11, 29), (7, 13)]
    terms = [_terms(*shape, [(5, 3), (4, 6)], seed=10 * i) for i, shape in enumerate(shapes)]
    modules = [
        [_with_directions(terms[0][0], 0, (3, 2, 3)), _with_directions(terms[0][1], 1, (4, 4, 2))],
        [replace(terms[1][0], task=0), _with_directions(terms[1][1], 1, (4, 3, 2))],
        [_with_directions(terms[2][1], 1, (4, 2, 5))],
    ]
    scales = [0.75, 1.5, 0.5]
    bs = [_normal(m, 3, seed=20 + i).requires_grad_() for i, (m, _) in enumerate(shapes)]
    as_ = [_normal(3, n, seed=30 + i).requires_grad_() for i, (_, n) in enumerate(shapes)]

    exact = [x.detach().double().requires_grad_() for x in (*bs, *as_)]
    updates = [scale * b @ a for scale, b, a in zip(scales, exact[:3], exact[3:], strict=True)]
    blocks = [_blocks(update, one) for update, one in zip(updates, modules, strict=True)]
    moves = [[(t.task, _moved(update, t)) for t in one if t.directions is not None]
             for update, one in zip(updates, modules, strict=True)]  # fmt: skip
    together = {task: sum(m for one in moves for t, m in one if t == task) for task in (0, 1)}
    whole = sum(blocks) + sum(0.5 * s.square().sum() for s in together.values())
    by_module = [
        block + sum(0.5 * (together[task] * move).sum() for task, move in one)
        for block, one in zip(blocks, moves, strict=True)
    ]
    gradients = torch.autograd.grad(whole, exact)

    plan = plan_curvature(modules, shapes, scales)
    total, values = plan(bs, as_)
    total.backward()
    assert total.item() == pytest.approx(whole.item(), rel=1e-5)
    assert values.tolist() == pytest.approx([value.item() for value in by_module], rel=1e-4)
    for x, gradient in zip((*bs, *as_), gradients, strict=True):
        assert x.grad is not None
        assert relative(x.grad, gradient) < 1e-5
    # Past task 1 twice as heavy.
    heavier = [[t.times(2.0) if t.task == 1 else t for t in one] for one in modules]
    more = sum(0.5 * s.square().sum() for s in (together[0], 2**0.5 * together[1]))
    rest = sum(_blocks(update, one) for update, one in zip(updates, heavier, strict=True))
    again, _ = plan_curvature(heavier, shapes, scales)(bs, as_)
    assert again.item() == pytest.approx((more + rest).item(), rel=1e-5)


def test_what_would_grow_by_stacking_is_not_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    def term(seed: int, task: int, wide: tuple[int, int, int]) -> Kronecker:
        (plain,) = _terms(64, 64, [(64, 64)], seed=seed)
        return _with_directions(replace(plain, u_floor=0.2), task, wide)

    tall, broad = (64, 64, 1), (64, 1, 64)
    modules = [[term(1, 0, tall), term(2, 1, broad)], [term(3, 0, broad), term(4, 1, tall)]]
    bs = [_normal(64, 3, seed=i) for i in (5, 6)]
    as_ = [_normal(3, 64, seed=i) for i in (7, 8)]

    def planned() -> tuple[CurvaturePlan, int]:
        plan = plan_curvature(modules, [(64, 64)] * 2, [0.5, 2.0])
        held = (batch.directions for batch in plan._batches)
        return plan, sum(one.numel() for one in held if one is not None)

    plan, apart = planned()
    monkeypatch.setattr(curvature, "_MOST_PADDING", 1000)
    whole, stacked = planned()
    assert (apart, stacked) == (4 * 64 * 64, 4 * 64 * 64 * 64)
    for one, other in zip(whole.terms(bs, as_), plan.terms(bs, as_), strict=True):
        for found, wanted in zip(one, other, strict=True):
            assert relative(found, wanted) < 1e-6


def _blocks(update: Tensor, terms: list[Kronecker]) -> Tensor:
    """½ Σ tr(ΔWᵀ G ΔW C) with G and C built, in float64."""
    value = torch.zeros((), dtype=torch.float64)
    for term in terms:
        u, v = term.u.double(), term.v.double()
        g = u @ u.T + term.u_floor * torch.eye(len(u))
        c = v @ v.T + term.v_floor * torch.eye(len(v))
        value = value + 0.5 * torch.trace(update.T @ g @ update @ c)
    return value


def _others(gather: Callable[[Tensor], Tensor]) -> Others:
    return Others(gather, (1, 3), torch.device("cpu"))


def test_processes_with_shares_of_the_modules_add_up_their_moves() -> None:
    shapes, scales = [(11, 29), (7, 13)], [0.75, 0.5]
    modules = [[_with_directions(_terms(*s, [(5, 6)], seed=i)[0], 0, (3, 4, 5))]
               for i, s in enumerate(shapes)]  # fmt: skip
    bs = [_normal(m, 3, seed=20 + i) for i, (m, _) in enumerate(shapes)]
    as_ = [_normal(3, n, seed=30 + i) for i, (_, n) in enumerate(shapes)]
    whole, values = plan_curvature(modules, shapes, scales)(bs, as_)
    seen: list[Tensor] = []
    for i in (0, 1):
        plan_curvature(modules[i : i + 1], shapes[i : i + 1], scales[i : i + 1],
                       others=_others(lambda moves: seen.append(moves) or moves))(
            bs[i : i + 1], as_[i : i + 1]
        )  # fmt: skip
    parts = [
        plan_curvature(modules[i : i + 1], shapes[i : i + 1], scales[i : i + 1],
                       others=_others(partial(torch.add, seen[1 - i])))(
            bs[i : i + 1], as_[i : i + 1]
        )[0]
        for i in (0, 1)
    ]  # fmt: skip
    assert [float(part) for part in parts] == pytest.approx(values.tolist(), rel=1e-5)
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-5)


def test_a_process_without_terms_or_modules_still_meets_the_others() -> None:
    met: list[tuple[int, ...]] = []
    others = Others(
        lambda moves: met.append(tuple(moves.shape)) or moves, (2, 32), torch.device("cpu")
    )
    one = _with_directions(_terms(11, 29, [(5, 6)], seed=0)[0], 0, (3, 4, 5))
    b, a = _normal(11, 3, seed=1), _normal(3, 29, seed=2)
    plan_curvature([[one]], [(11, 29)], [1.0], others=others)([b], [a])
    plan_curvature([[]], [(11, 29)], [1.0], others=others)([b], [a])
    plan_curvature([], [], [], others=others)([], [])
    assert met == [(2, 32)] * 3


@pytest.mark.parametrize("size", [(3, 6, 2), (3, 2, 7), (3, 2)])
def test_directions_outside_the_columns_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="R is"):
        replace(_terms(11, 29, [(5, 6)], seed=0)[0], directions=torch.zeros(size))


def _launches(modules: int) -> int:
    shapes = [(11, 29), (7, 29)]
    wanted = [shapes[i % 2] for i in range(2 * modules)]
    plan = plan_curvature(
        [_terms(*shape, [(5, 3), (4, 6)], seed=i) for i, shape in enumerate(wanted)],
        wanted,
        [0.5] * len(wanted),
    )
    bs = [_normal(m, 4, seed=i).requires_grad_() for i, (m, _) in enumerate(wanted)]
    as_ = [_normal(4, n, seed=i).requires_grad_() for i, (_, n) in enumerate(wanted)]
    counter = OperationCounter()
    with counter:
        plan(bs, as_)[0].backward()
    return counter.operations


def test_launches_grow_with_shapes_and_not_with_modules() -> None:
    assert 0 < _launches(3) == _launches(30)
