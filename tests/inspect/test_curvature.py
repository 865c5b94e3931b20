"""Predicted rises and where curvature sits, against G ⊗ C built outright in float64."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.adapter.curvature_file import read_curvature, write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.inspect.curvature import (
    curvatures_of_tasks,
    predicted_rise,
    rises_of,
    rises_of_sequence,
)
from ella_cli.inspect.energy import energy_of
from ella_cli.inspect.overlap import overlap_of
from ella_cli.kernels import Kronecker
from ella_cli.past import Past
from ella_cli.report.document import Document
from ella_cli.report.inspected_curvature import sequence_rise_section
from ella_cli.report.inspected_past import energy_document
from ella_cli.report.inspected_update import overlap_document
from ella_cli.report.markdown import render
from tests.past.conftest import SHAPES, make_adapter  # noqa: F401  (a fixture)
from tests.past.test_curvature import MakeAdapter, measured


@pytest.fixture
def two(make_adapter: MakeAdapter) -> list[Adapter]:  # noqa: F811
    return [read_adapter(measured(make_adapter(f"task{i}", i), 100 + i)) for i in range(2)]


@pytest.fixture
def update(make_adapter: MakeAdapter) -> Adapter:  # noqa: F811
    return read_adapter(make_adapter("new", 7, alpha=0.01))


def _factors(adapter: Adapter, name: str) -> tuple[Tensor, Tensor]:
    """G and C in f64, from the file by nothing of ours."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = adapter.path / "curvature.safetensors"
    tensors = load_file(path)
    u, v = tensors[f"{name}.U"].double(), tensors[f"{name}.V"].double()
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["ella_curvature"])
    gamma, kappa = record["floors"].get(name, (0, 0))
    return u @ u.T + gamma * torch.eye(len(u)), v @ v.T + kappa * torch.eye(len(v))


def _directions(adapter: Adapter, name: str) -> Tensor:
    """The module's part of each direction as a matrix, (D, M, N) f64; none where it has no part."""
    from safetensors.torch import load_file

    tensors = load_file(adapter.path / "curvature.safetensors")
    m, n = SHAPES[name]
    if f"{name}.R" not in tensors:
        return torch.zeros(0, m, n, dtype=torch.float64)
    u, v, r = (tensors[f"{name}.{letter}"].double() for letter in "UVR")
    return torch.stack([u[:, : len(one)] @ one @ v[:, : one.shape[1]].T for one in r])


def _term(adapter: Adapter, name: str) -> Kronecker:
    curvature = read_curvature(adapter)
    assert curvature is not None
    return curvature.kronecker(name)


def test_a_rise_is_the_quadratic_form_of_the_update(two: list[Adapter], update: Adapter) -> None:
    rises = {rise.task: rise for rise in rises_of(update, Past.of(two))}
    assert set(rises) == {"task0", "task1"}
    for adapter in two:
        rise = rises[adapter.task]
        total, random = 0.0, 0.0
        deltas, moves = {}, {}
        for name in update.names:
            one = update.update(name)
            deltas[name] = (one.scale * one.b @ one.a).double()
            moves[name] = (_directions(adapter, name) * deltas[name]).sum((1, 2))
        together = sum(move for move in moves.values() if len(move))
        assert isinstance(together, Tensor)
        assert len(together) == 5
        for name, part in zip(update.names, rise.modules, strict=True):
            delta, move = deltas[name], moves[name]
            g, c = _factors(adapter, name)
            nats = 0.5 * float(torch.trace(delta.T @ g @ delta @ c))
            nats += 0.5 * float((move * together).sum()) if len(move) else 0.0
            assert part.nats == pytest.approx(nats, rel=1e-4, abs=1e-7)
            total += nats
            square = g.trace() * c.trace() + _directions(adapter, name).square().sum()
            random += 0.5 * float(delta.square().sum() * square / delta.numel())
        assert rise.nats == pytest.approx(total, rel=1e-5)
        assert rise.random == pytest.approx(random, rel=1e-5)
        assert rise.worst.nats == max(part.nats for part in rise.modules)


def test_random_updates_of_the_same_norms_cost_in_the_mean_what_is_said(
    two: list[Adapter], update: Adapter
) -> None:
    generator = torch.Generator().manual_seed(0)
    costs, moves = torch.zeros(4000).double(), torch.zeros(4000, 5).double()
    for name in update.names:
        one, (g, c) = update.update(name), _factors(two[0], name)
        norm = float((one.scale * one.b @ one.a).norm())
        draws = torch.randn(4000, *SHAPES[name], generator=generator).double()
        draws *= norm / math.sqrt(draws[0].numel())
        costs += 0.5 * torch.einsum("smn,mk,skl,ln->s", draws, g, draws, c)
        directions = _directions(two[0], name)
        if len(directions):
            moves += torch.einsum("smn,dmn->sd", draws, directions)
    costs += 0.5 * moves.square().sum(1)
    rise = next(one for one in rises_of(update, Past.of(two)) if one.task == "task0")
    assert rise.random == pytest.approx(float(costs.mean()), rel=0.05)


def test_the_costliest_task_comes_first_and_ones_own_is_left_out(two: list[Adapter]) -> None:
    rises = rises_of(two[0], Past.of(two))
    assert [rise.task for rise in rises] == ["task1"]


def test_effective_ranks_and_shares_are_those_of_the_matrices(two: list[Adapter]) -> None:
    for adapter, task in zip(two, curvatures_of_tasks(Past.of(two)), strict=True):
        traces = {}
        for module in task.modules:
            g, c = _factors(adapter, module.name)
            traces[module.name] = float(g.trace() * c.trace())
            term = _term(adapter, module.name)
            for factor, found in ((term.u, module.g_rank), (term.v, module.c_rank)):
                # Of what was measured: the floors are nobody's direction.
                values = torch.linalg.eigvalsh((factor @ factor.T).double()).clamp_min(1e-12)
                shares = values / values.sum()
                entropy = -float((shares * shares.log()).sum())
                assert found == pytest.approx(math.exp(entropy), rel=1e-3)
        assert task.trace == pytest.approx(sum(traces.values()), rel=1e-5)
        for module in task.modules:
            assert module.share == pytest.approx(traces[module.name] / task.trace, rel=1e-5)


def test_words_say_whom_an_update_endangers(two: list[Adapter], update: Adapter) -> None:
    past = Past.of(two)
    text = render(overlap_document(overlap_of(update, past), "new", "w"))
    worst = rises_of(update, past)[0]
    assert f"new is predicted to cost {worst.task} {worst.nats:.2g} nats an answer token" in text
    assert worst.worst.name in text


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (None, "Importance 0.06."),
        (0.031, "Importance 0.06; its answers cost 0.031 nats more to one another's questions."),
        (-0.002, "Importance 0.06; its answers cost no more to one another's questions."),
    ],
)
def test_words_say_what_a_task_counts_and_rises_are_in_full(
    contrast: float | None, words: str, two: list[Adapter], update: Adapter
) -> None:
    before = {rise.task: rise for rise in rises_of(update, Past.of(two))}
    name = two[0].task
    held = read_curvature(two[0])
    assert held is not None
    modules = {one: held.kronecker(one) for one in held.names}
    record = replace(held.record, importance=0.06, contrast=contrast)
    write_curvature(two[0].path, modules, record)
    past = Past.of(two)
    after = {rise.task: rise for rise in rises_of(update, past)}
    assert after[name].importance == 0.06
    assert after[name].nats == pytest.approx(before[name].nats, rel=1e-6)
    assert words in render(energy_document(energy_of(past), "w"))


def test_a_prediction_that_was_trained_against_says_so(two: list[Adapter], update: Adapter) -> None:
    past = Past.of(two)
    assert "several times more" not in render(overlap_document(overlap_of(update, past), "a", "w"))
    (update.path / "ella.json").write_text('{"format": 1, "task": "new", "energy": "curvature"}')
    trained = read_adapter(update.path)
    assert all(rise.trained_against for rise in rises_of(trained, past))
    text = render(overlap_document(overlap_of(trained, past), "a", "w"))
    assert "expect several times more" in text


def test_energy_tells_which_tasks_are_not_measured(
    two: list[Adapter], update: Adapter, tmp_path: Path
) -> None:
    text = render(energy_document(energy_of(Past.of([*two, update])), "w"))
    assert "Not measured: new." in text
    assert "task0" in text


def test_a_curvature_of_nothing_costs_nothing(two: list[Adapter], update: Adapter) -> None:
    name = "model.layers.2.q"
    zero = Kronecker(torch.zeros(37, 1), torch.zeros(29, 1))
    record = CurvatureRecord(two[0].digest, two[0].task)
    write_curvature(two[0].path, {name: zero}, record)
    (rise,) = rises_of(update, Past.of(two[:1]))
    assert rise.nats == 0
    (task,) = curvatures_of_tasks(Past.of(two[:1]))
    assert task.trace == 0
    assert task.modules[0].g_rank == 0


def test_a_rise_from_the_adapters_alone_is_that_from_the_past(
    two: list[Adapter], update: Adapter
) -> None:
    rises = {rise.task: rise.nats for rise in rises_of(update, Past.of(two))}
    for adapter in two:
        assert predicted_rise(update, adapter) == pytest.approx(rises[adapter.task], rel=1e-12)
    assert predicted_rise(two[0], update) is None


def test_a_sequence_shows_what_each_update_costs_the_tasks_before_it(
    two: list[Adapter], update: Adapter
) -> None:
    report = rises_of_sequence([*two, update])
    assert report is not None
    assert report.tasks == ("task0", "task1", "new")
    assert report.nats[0] == (None, None, None)
    assert report.nats[1][0] == pytest.approx(predicted_rise(two[1], two[0]), rel=1e-12)
    assert report.nats[2][1] == pytest.approx(predicted_rise(update, two[1]), rel=1e-12)
    assert report.nats[1][1:] == (None, None)
    assert report.trained_against == ()
    # Nothing comes after a task that alone has measured.
    assert rises_of_sequence([update, two[0]]) is None

    costliest = max((report.nats[j][i] or 0, j, i) for i, j in ((0, 1), (0, 2), (1, 2)))
    worst, later, earlier = costliest
    text = render(Document("", (sequence_rise_section(report),)))
    assert (
        f"The costliest: {report.tasks[later]} is predicted to cost {report.tasks[earlier]} "
        f"{worst:.2g} nats an answer token."
    ) in " ".join(text.split())
