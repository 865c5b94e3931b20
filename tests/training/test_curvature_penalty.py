"""The penalty on a real model: tasks weighed, floors counted, shares of processes added up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ella_cli import processes
from ella_cli.adapter import read_adapter
from ella_cli.config import LoraFields, RunSettings
from ella_cli.errors import PastError
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers, lora_pair
from ella_cli.past import Past, accumulate, read_past
from ella_cli.penalty import CurvaturePenalty
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.methods import Situation, ella_penalty
from ella_cli.training.task import train_task


@pytest.fixture(scope="module")
def base(tiny_llama: Path) -> Base:
    return load_base(str(tiny_llama), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def folders(base: Base, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    settings = RunSettings(
        model=str(tiny_llama), dtype="float32", device="cpu", max_steps=2,
        curvature_rows=8, energy_rank=3,
    )  # fmt: skip
    root = tmp_path_factory.mktemp("adapters")
    for index in range(2):
        task = load_task("demo-topic", limit=8, seed=index)
        train_task(base, Assignment(f"t{index}", [task], index), settings, root / f"t{index}")
    return [root / "t0", root / "t1"]


@pytest.fixture
def model(base: Base) -> Iterator[nn.Module]:
    model = attach_lora(base, LoraFields(lora_rank=2), seed=0)
    yield model
    detach_lora(model)


def test_it_is_what_the_update_costs_each_task_times_its_weight(
    model: nn.Module, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate(folders, tmp_path / "w", energy="curvature", decay=0.25)
    past = read_past(tmp_path / "w")
    generator = torch.Generator().manual_seed(0)
    expected, moves = 0.0, torch.zeros(2, 8, dtype=torch.float64)
    for name, layer in lora_layers(model).items():
        b, a, scale = lora_pair(layer)
        with torch.no_grad():
            b.copy_(0.1 * torch.randn(b.shape, generator=generator))
        update = scale * (b.detach() @ a.detach()).double()
        for i, (curvature, weight) in enumerate(zip(past.curvatures, (0.25, 1.0), strict=True)):
            term = curvature.kronecker(name)
            assert term.directions is not None
            directions, rows, columns = term.directions.shape
            assert directions == 8
            assert term.u_floor > 0
            assert term.v_floor > 0
            u, v = term.u.double(), term.v.double()
            g = u @ u.T + term.u_floor * torch.eye(len(u))
            c = v @ v.T + term.v_floor * torch.eye(len(v))
            expected += 0.5 * weight * float(torch.trace(update.T @ g @ update @ c))
            along = torch.einsum(
                "dkl,kl->d",
                term.directions.double(),
                u[:, :rows].T @ update @ v[:, :columns],
            )
            moves[i] += weight**0.5 * along
    expected += 0.5 * float(moves.square().sum())
    whole = CurvaturePenalty(model, past)
    assert float(whole().detach()) == pytest.approx(expected, rel=1e-5)
    # The mean over processes, each with its share of the modules, is the whole.
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(processes, "summed", lambda moves: parts.append(moves) or moves)
    shares = [CurvaturePenalty(model, past, share=(rank, 2)) for rank in range(2)]
    _ = [one() for one in shares]
    monkeypatch.setattr(processes, "summed", lambda _: parts[0] + parts[1])
    shares = [CurvaturePenalty(model, past, share=(rank, 2)) for rank in range(2)]
    mean = sum(float(one().detach()) for one in shares) / 2
    assert mean == pytest.approx(expected, rel=1e-5)


def test_the_coordinates_beside_a_weighed_curvature_are_not_taken_for_weighed(
    model: nn.Module, folders: list[Path]
) -> None:
    adapters = [read_adapter(folder) for folder in folders]
    alike = Past.of(adapters, energy="curvature")
    assert ella_penalty(Situation(model, alike, (), 0.0, 1.0, energy="sum")) is not None
    for weights in ({"last": 1}, {"decay": 0.5}):
        past = Past.of(adapters, energy="curvature", **weights)  # type: ignore[arg-type]
        with pytest.raises(PastError, match="weighs its tasks' curvature by --last or --decay"):
            ella_penalty(Situation(model, past, (), 0.0, 1.0, energy="sum"))


def test_a_past_without_any_is_refused(model: nn.Module, folders: list[Path]) -> None:
    (folders[1] / "curvature.safetensors").unlink()
    with pytest.raises(PastError, match=r"no task of .* has a curvature"):
        CurvaturePenalty(model, Past.of([read_adapter(folders[1])]))
    # The first task's does not count here, so the penalty would be 0 throughout.
    newest = Past.of([read_adapter(folder) for folder in folders], last=1)
    with pytest.raises(PastError, match=r"no task of .* that counts has a curvature"):
        CurvaturePenalty(model, newest)
