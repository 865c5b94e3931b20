"""Two tasks one after the other on a CUDA device are what they are on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import read_curvature
from ella_cli.config import TrainSettings
from ella_cli.kernels import Kronecker
from ella_cli.model.base import load_base
from ella_cli.past import Past
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.task import train_task

_SETTINGS = TrainSettings(
    max_steps=6, learning_rate=0.01, lora_rank=2, lora_dropout=0.0, limit=16, curvature_rows=8
)


@pytest.mark.gpu
@pytest.mark.parametrize("optim", ["adamw", "adamw-past"])
def test_two_tasks_on_cuda_are_those_of_the_cpu(
    tiny_llama: Path, tmp_path: Path, optim: str
) -> None:
    settings = _SETTINGS.model_copy(update={"optim": optim})
    here = _stages(tiny_llama, tmp_path / "cpu", settings, "cpu")
    there = _stages(tiny_llama, tmp_path / "cuda", settings, "cuda")
    for cpu, cuda in zip(here, there, strict=True):
        for name, whole in _updates(cpu).items():
            assert _apart(whole, _updates(cuda)[name]) < 1e-3
        ours, theirs = _measured(cpu), _measured(cuda)
        assert set(ours) == set(theirs)
        for name, term in ours.items():
            # Columns may differ in sign, and so may the directions in their basis.
            for factor, other in ((term.u, theirs[name].u), (term.v, theirs[name].v)):
                assert _apart(factor @ factor.T, other @ other.T) < 1e-3
            assert _apart(_directions(term), _directions(theirs[name])) < 1e-2


def _stages(model: Path, folder: Path, settings: TrainSettings, device: str) -> list[Path]:
    base = load_base(str(model), dtype="float32", device=device)
    earlier: list[Path] = []
    for number, name in enumerate(("demo-topic", "demo-mood")):
        past = Past.of([read_adapter(one) for one in earlier]) if earlier else None
        adapters = tuple(read_adapter(one) for one in earlier)
        assignment = Assignment(name, [load_task(name, limit=16)], number, past, adapters)
        train_task(base, assignment, settings, folder / str(number))
        earlier.append(folder / str(number))
    return earlier


def _updates(folder: Path) -> dict[str, Tensor]:
    adapter = read_adapter(folder)
    pairs = {name: adapter.update(name) for name in adapter.names}
    return {name: pair.b.double() @ pair.a.double() for name, pair in pairs.items()}


def _measured(folder: Path) -> dict[str, Kronecker]:
    curvature = read_curvature(read_adapter(folder))
    assert curvature is not None
    return {name: curvature.kronecker(name) for name in curvature.names}


def _directions(term: Kronecker) -> Tensor:
    """Their sum of squares as a form on the module's updates, (MN, MN) f64."""
    assert term.directions is not None
    _, rows, columns = term.directions.shape
    u, v = term.u[:, :rows].double(), term.v[:, :columns].double()
    each = torch.einsum("mk,dkl,nl->dmn", u, term.directions.double(), v).flatten(1)
    return each.T @ each


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())
