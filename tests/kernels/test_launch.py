"""The Triton forms against float64, in the interpreter or, marked gpu, on a device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ella_cli.kernels import Factors, PenaltyPlan, schedule
from ella_cli.kernels.launch import precision_for
from ella_cli.kernels.parts import Module, parts_of
from ella_cli.kernels.schedule import blocks_for, launches_of, make_schedule
from tests.kernels.truth import Case, far_apart_rows, float64_truth, make_case, relative

UPSTREAM = -1.75
DEVICES = [
    pytest.param(
        "cpu",
        id="interpreter",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the device instead"),
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
SHAPES = [
    # M, N, R, R_past: no tile divides them
    (1, 1, 1, 1),
    (1, 67, 3, 2),
    (71, 1, 5, 4),
    (130, 517, 8, 8),
    (65, 33, 7, 45),
    (19, 35, 256, 3),
    (290, 45, 12, 17),
    (33, 70, 100, 5),
]

pytestmark = pytest.mark.parametrize("device", DEVICES)


def run(
    pasts: Sequence[Tensor | Factors],
    bs: Sequence[Tensor],
    as_: Sequence[Tensor],
    scales: Sequence[float],
    precision: str | None = "ieee",
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Total, values and gradients (upstream divided out again) from the kernels."""
    modules = [
        Module(past, b.shape[1], scale, "tiled" if isinstance(past, Factors) else "fused")
        for past, b, scale in zip(pasts, bs, scales, strict=True)
    ]
    plan = PenaltyPlan(
        modules, [f"layer {i}" for i in range(len(bs))], precision=precision, kernels=True
    )
    bs = [b.detach().requires_grad_() for b in bs]
    as_ = [a.detach().requires_grad_() for a in as_]
    total, values = plan(bs, as_)
    (UPSTREAM * total).backward()
    return (
        total,
        values,
        [b.grad / UPSTREAM for b in bs if b.grad is not None],
        [a.grad / UPSTREAM for a in as_ if a.grad is not None],
    )


def moved(case: Case, device: str, *, factored: bool) -> tuple[Tensor, Tensor, Tensor | Factors]:
    past = Factors(case.factors.p.to(device), case.factors.q.to(device))
    return case.b.to(device), case.a.to(device), past if factored else past.dense()


@pytest.mark.parametrize("factored", [False, True], ids=["fused", "tiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-N{}-R{}-Rpast{}".format(*s))
def test_value_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int, int], factored: bool, device: str
) -> None:
    case = make_case(*shape)
    b, a, past = moved(case, device, factored=factored)
    _, values, (db,), (da,) = run([past], [b], [a], [case.scale])
    assert relative(values[0], case.value) < 1e-5
    assert relative(db, case.db) < 1e-5
    assert relative(da, case.da) < 1e-5


@pytest.mark.parametrize("factored", [False, True], ids=["fused", "tiled"])
def test_modules_of_different_shapes_share_a_launch(factored: bool, device: str) -> None:
    cases = [make_case(*shape, scale=0.5 + i, seed=i) for i, shape in enumerate(SHAPES)]
    bs, as_, pasts = zip(*(moved(case, device, factored=factored) for case in cases), strict=True)
    total, values, dbs, das = run(pasts, bs, as_, [case.scale for case in cases])
    assert relative(total, torch.stack([case.value for case in cases]).sum()) < 1e-5
    for case, value, db, da in zip(cases, values, dbs, das, strict=True):
        assert relative(value, case.value) < 1e-5
        assert relative(db, case.db) < 1e-5
        assert relative(da, case.da) < 1e-5


@pytest.mark.parametrize("past_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("b_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("a_dtype", [torch.float16, torch.float32])
def test_dtypes_may_be_mixed(
    a_dtype: torch.dtype, b_dtype: torch.dtype, past_dtype: torch.dtype, device: str
) -> None:
    case = make_case(40, 48, 6, 3)
    b, a = case.b.to(device, b_dtype), case.a.to(device, a_dtype)
    w = case.factors.dense().to(device, past_dtype)
    value, db, da = float64_truth(b.cpu(), a.cpu(), w.cpu(), case.scale)
    _, values, (db_found,), (da_found,) = run([w], [b], [a], [case.scale])
    assert relative(values[0], value) < 1e-5
    # A gradient comes in its factor's dtype, rounded once, then scaled here once more.
    assert relative(db_found, db) < (1e-5 if b_dtype == torch.float32 else 1e-2)
    assert relative(da_found, da) < (1e-5 if a_dtype == torch.float32 else 2e-3)


def test_pasts_whose_factors_differ_in_dtype_share_no_launch_with_others(device: str) -> None:
    cases = [make_case(70, 45, 4, 6, seed=seed) for seed in (1, 2)]
    p, q = (factor.bfloat16().to(device) for factor in (cases[0].factors.p, cases[0].factors.q))
    halved = Factors(p, q)
    mixed = Factors(cases[1].factors.p.bfloat16().to(device), cases[1].factors.q.to(device))
    for order in ((0, 1), (1, 0)):
        pasts = [(halved, mixed)[i] for i in order]
        own = [cases[i] for i in order]
        bs, as_ = [case.b.to(device) for case in own], [case.a.to(device) for case in own]
        _, values, dbs, _ = run(pasts, bs, as_, [1.0, 1.0])
        for past, case, value, db in zip(pasts, own, values, dbs, strict=True):
            w = past.p.cpu().double() @ past.q.cpu().double()
            truth, truth_db, _ = float64_truth(case.b, case.a, w, 1.0)
            assert relative(value, truth) < 1e-5
            assert relative(db, truth_db) < 1e-5


def test_buffers_are_f32_whatever_torchs_default_is(device: str) -> None:
    case = make_case(70, 45, 4, 6)
    b, a, past = moved(case, device, factored=True)
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, values, (db,), _ = run([past], [b], [a], [case.scale])
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative(values[0], case.value) < 1e-5
    assert relative(db, case.db) < 1e-5


@pytest.mark.parametrize("aligned", [False, True])
def test_layouts_may_be_transposed_or_strided(aligned: bool, device: str) -> None:
    case = make_case(48, 32, 4, 3)
    b, a, w = moved(case, device, factored=False)
    assert isinstance(w, Tensor)
    if aligned:
        wide = torch.full((48, 64), float("nan"), device=device)
        wide[:, 16:48] = w
        w = wide[:, 16:48]
    else:
        w = w.T.contiguous().T
    b, a = b.T.contiguous().T, torch.stack([a, a], dim=2)[:, :, 1]
    _, values, (db,), (da,) = run([w], [b], [a], [case.scale])
    assert relative(values[0], case.value) < 1e-5
    assert relative(db, case.db) < 1e-5
    assert relative(da, case.da) < 1e-5


def test_offsets_beyond_2_to_the_31_are_reached(device: str) -> None:
    w = far_apart_rows(device)
    w.copy_(torch.arange(15.0).view(3, 5))
    case = make_case(3, 5, 2, 1)
    value, db, da = float64_truth(case.b, case.a, w.cpu().clone(), 1.0)
    _, values, (db_found,), (da_found,) = run([w], [case.b.to(device)], [case.a.to(device)], [1.0])
    assert relative(values[0], value) < 1e-5
    assert relative(db_found, db) < 1e-5
    assert relative(da_found, da) < 1e-5


def test_equal_inputs_give_equal_bits(device: str) -> None:
    case = make_case(300, 530, 8, 5)
    b, a, w = moved(case, device, factored=False)
    first, second = (run([w], [b], [a], [1.0]) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2][0], second[2][0])
    assert torch.equal(first[3][0], second[3][0])


def test_parameters_that_move_are_found_again(device: str) -> None:
    case = make_case(20, 30, 4, 2)
    b, a, w = moved(case, device, factored=False)
    plan = PenaltyPlan([Module(w, 4, case.scale, "fused")], ["layer"], kernels=True)
    before, _ = plan([b], [a])
    after, _ = plan([2 * b], [a.clone()])
    assert relative(before, case.value) < 1e-5
    assert relative(after, 4 * case.value) < 1e-5


def test_half_precision_pasts_take_tf32_and_float32_ones_do_not(device: str) -> None:
    w = torch.zeros(2, 2, device=device)
    assert precision_for(w, None) == "ieee"
    assert precision_for(w.bfloat16(), None) == "tf32"
    assert precision_for(Factors(w.half(), w.half()), None) == "tf32"
    assert precision_for(w.bfloat16(), "ieee") == "ieee"


def test_items_cover_each_element_once(device: str) -> None:
    shapes = [(1, 1, 1), (1030, 700, 8), (64, 513, 8)]
    blocks = blocks_for(8, "tf32", factored=False)
    schedule = make_schedule(shapes, [1.0] * 3, blocks, 7, torch.device(device))
    seen = [torch.zeros(rows, columns) for rows, columns, _ in shapes]
    for module, column, first, last, *_ in schedule.items.tolist():
        seen[module][first:last, column : column + blocks.columns] += 1
    assert all(bool((count == 1).all()) for count in seen)


@pytest.mark.parametrize("factored", [False, True], ids=["fused", "tiled"])
def test_slots_that_take_too_much_are_those_of_several_launches(
    factored: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [make_case(70, 200, 4, 6, seed=seed) for seed in range(5)]
    own = [moved(case, device, factored=factored) for case in cases]
    bs, as_, pasts = zip(*own, strict=True)
    shapes = [(70, 200, 4)] * 5
    blocks = blocks_for(4, "ieee", factored=factored)
    assert launches_of(shapes, blocks) == [[0, 1, 2, 3, 4]]
    one = make_schedule(shapes[:1], [1.0], blocks, 2, torch.device("cpu")).workspace_size
    monkeypatch.setattr(schedule, "MOST_WORKSPACE_BYTES", 4 * int(2.5 * one))
    assert launches_of(shapes, blocks) == [[0, 1], [2, 3], [4]]
    modules = [
        Module(past, 4, case.scale, "tiled" if factored else "fused")
        for past, case in zip(pasts, cases, strict=True)
    ]
    parts = parts_of(modules, bs, as_, precision="ieee", keep=True, kernels=True)
    assert [part.members for part in parts] == [(0, 1), (2, 3), (4,)]
    _, values, dbs, das = run(pasts, bs, as_, [case.scale for case in cases])
    for case, value, db, da in zip(cases, values, dbs, das, strict=True):
        assert relative(value, case.value) < 1e-5
        assert relative(db, case.db) < 1e-5
        assert relative(da, case.da) < 1e-5
    # One that is too large for any has a launch of its own.
    monkeypatch.setattr(schedule, "MOST_WORKSPACE_BYTES", 0)
    assert launches_of(shapes, blocks) == [[0], [1], [2], [3], [4]]
