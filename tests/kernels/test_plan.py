"""A plan prepares once, is called many times, and chooses well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.errors import ShapeError
from ella_cli.kernels import Factors, gram, plan_penalty
from ella_cli.kernels.choice import free_bytes, uncancelled
from ella_cli.kernels.parts import Module
from tests.kernels.truth import float64_truth, make_case, relative


def test_a_plan_is_called_again_with_moved_parameters() -> None:
    case = make_case(40, 30, 4, 6)
    plan = plan_penalty([case.factors], [case.scale], rank=4)
    for factor in (1.0, 3.0):
        total, values = plan([factor * case.b], [case.a])
        assert relative(total, factor**2 * case.value) < 1e-5
        assert relative(values[0], factor**2 * case.value) < 1e-5


def test_ranks_may_differ_between_modules() -> None:
    cases = [make_case(40, 30, rank, 6) for rank in (4, 7)]
    plan = plan_penalty([case.factors for case in cases], [0.75, 0.75], rank=[4, 7])
    total, _ = plan([case.b for case in cases], [case.a for case in cases])
    assert relative(total, cases[0].value + cases[1].value) < 1e-5


def test_another_rank_than_planned_is_an_error_that_names_the_module() -> None:
    case = make_case(4, 5, 3, 1)
    plan = plan_penalty([case.factors], [1.0], rank=2, names=["layers.0.q_proj"])
    with pytest.raises(ShapeError, match=r"layers.0.q_proj: B \(4, 3\) has rank 3, its plan 2"):
        plan([case.b], [case.a])
    with pytest.raises(ShapeError, match="0 B and 0 A for a plan of 1"):
        plan([], [])
    with pytest.raises(ShapeError, match="1 pasts, 2 scales"):
        plan_penalty([case.factors], [1.0, 2.0], rank=2)


def test_a_long_past_goes_through_gram_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(40, 30, 4, 9)
    # Room for 7 of the 45 pair products of 9 columns.
    monkeypatch.setattr(gram, "KEPT_BYTES", 7 * (40 + 30) * 4)
    b = case.b.requires_grad_()
    plan = plan_penalty([case.factors], [case.scale], rank=4, form="gram")
    total, _ = plan([b], [case.a])
    total.backward()
    assert b.grad is not None
    assert relative(total, case.value) < 1e-5
    assert relative(b.grad, case.db) < 1e-5


def test_auto_takes_gram_for_one_large_task_and_dense_for_many() -> None:
    few = Factors(torch.ones(4096, 8), torch.ones(8, 4096))
    many = Factors(torch.ones(512, 800), torch.ones(800, 512))
    assert plan_penalty([few], [1.0], rank=8).forms == ("gram",)
    assert plan_penalty([many], [1.0], rank=8).forms == ("fused",)
    assert plan_penalty([torch.ones(4, 4)], [1.0], rank=8).forms == ("fused",)


def _undone(share: float) -> tuple[Tensor, Tensor, Factors]:
    """An update of the upper half, where the second past task undid that share of the first."""
    case = make_case(206, 204, 8, 8)
    b, p, q = case.b.clone(), case.factors.p, case.factors.q
    b[103:] *= 1e-3
    again = p.clone()
    again[:103] *= -share
    again[103:] = make_case(206, 204, 8, 8, seed=7).factors.p[103:]
    return b, case.a, Factors(torch.cat([p, again], 1), torch.cat([q, q]))


def _undoing_itself(share: float) -> tuple[Tensor, Tensor, Factors]:
    case = make_case(206, 204, 4, 8)
    return torch.cat([case.b, -share * case.b], 1), torch.cat([case.a, case.a]), case.factors


@pytest.mark.parametrize("made", [_undone, _undoing_itself])
@pytest.mark.parametrize("share", [0.9, 0.99, 0.999])
def test_gram_is_exact_where_little_is_left_of_its_terms(
    made: Callable[[float], tuple[Tensor, Tensor, Factors]], share: float
) -> None:
    b, a, past = made(share)
    w = past.p.double() @ past.q.double()
    plain = make_case(206, 204, b.shape[1], past.rank, seed=3)
    # Beside a module of the same shape that has nothing to do with it.
    plan = plan_penalty([plain.factors, past], [0.75, 0.75], rank=b.shape[1], form="gram")
    bs, as_ = [plain.b, b], [plain.a, a]
    _, values = plan(bs, as_)
    _, dbs, das = plan.terms(bs, as_)
    truths = (plain.value, plain.db, plain.da), float64_truth(b, a, w, 0.75)
    for i, (value, db, da) in enumerate(truths):
        assert relative(values[i], value) < 2e-5
        assert relative(dbs[i], db) < 2e-4
        assert relative(das[i], da) < 2e-4


def test_auto_leaves_gram_where_past_updates_undo_each_other() -> None:
    p, q = torch.randn(1030, 4), torch.randn(4, 1020)
    undone = Factors(torch.cat([p, -0.999 * p], dim=1), torch.cat([q, q]))
    unrelated = Factors(torch.randn(1030, 8), torch.randn(8, 1020))
    assert uncancelled(undone) < 1e-3
    assert uncancelled(unrelated) > 0.5
    assert plan_penalty([unrelated], [1.0], rank=8).forms == ("gram",)
    assert plan_penalty([undone], [1.0], rank=8).forms != ("gram",)
    b, a = torch.randn(1030, 8), torch.randn(8, 1020)
    total, _ = plan_penalty([undone], [1.0], rank=8)([b], [a])
    truth = (b.double() @ a.double() * (undone.p.double() @ undone.q.double())).square().sum()
    assert relative(total, truth) < 1e-4


def test_auto_rebuilds_blocks_where_a_dense_past_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past = Factors(torch.ones(512, 800), torch.ones(800, 512))
    monkeypatch.setattr("ella_cli.kernels.choice.free_bytes", lambda device: 1000)
    assert plan_penalty([past], [1.0], rank=8).forms == ("tiled",)


def test_pages_that_cache_files_are_free_memory() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable"))
    available = int(line.split()[1]) * 1024
    assert free_bytes(torch.device("cpu")) == pytest.approx(available, rel=0.2)


def test_modules_of_one_shape_are_one_part() -> None:
    from ella_cli.kernels.parts import parts_of

    cases = [make_case(20, 30, 4, 3) for _ in range(5)]
    modules = [Module(case.factors, 4, 1.0, "gram") for case in cases]
    parts = parts_of(
        modules,
        [case.b for case in cases],
        [case.a for case in cases],
        precision=None,
        keep=True,
        kernels=None,
    )
    assert [part.members for part in parts] == [(0, 1, 2, 3, 4)]
