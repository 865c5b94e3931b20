"""One global batch gives one gradient, however it is cut into micro-batches and processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.model.base import load_base
from ella_cli.past import Past
from tests.training.conftest import SCRIPT

LAM = 50.0


@pytest.fixture(params=["tiny_llama", "tiny_t5"])
def model(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def adapter(model: Path, one_step: ModuleType, tmp_path: Path) -> Path:
    folder = tmp_path / "earlier"
    earlier = one_step.adapted(load_base(str(model), dtype="float32", device="cpu"), seed=2)
    earlier.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert expected
    for name, want in expected.items():
        error = (got[name] - want).norm() / want.norm()
        assert error < 1e-5, f"{name}: relative error {error:.2e}"


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    model: Path, adapter: Path, one_step: ModuleType
) -> None:
    whole, _ = one_step.step(model, adapter, per_device=8, accumulation=1, lam=LAM, plain=False)
    for per_device, accumulation in ((4, 2), (2, 4), (1, 8)):
        parts, _ = one_step.step(
            model, adapter, per_device=per_device, accumulation=accumulation, lam=LAM, plain=False
        )
        _close(parts, whole)


def test_two_processes_give_the_gradient_of_the_whole_batch(
    model: Path, adapter: Path, one_step: ModuleType, tmp_path: Path
) -> None:
    whole, _ = one_step.step(model, adapter, per_device=8, accumulation=1, lam=LAM, plain=False)
    for per_device, accumulation in ((4, 1), (2, 2)):
        out = tmp_path / f"{per_device}.safetensors"
        arguments = ["--per-device", per_device, "--accumulation", accumulation, "--lam", LAM]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command = [*launch, "--standalone", SCRIPT, model, adapter, out, *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        _close(load_file(out), whole)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_in_a_plain_trainer_the_penalty_has_exactly_its_weight(
    model: Path, adapter: Path, one_step: ModuleType, accumulation: int
) -> None:
    """Its gradient is what the penalty adds; the loss may be whatever that Trainer makes of it."""
    shape = {"per_device": 8 // accumulation, "accumulation": accumulation, "plain": True}
    without, _ = one_step.step(model, adapter, lam=0.0, **shape)
    with_, _ = one_step.step(model, adapter, lam=LAM, **shape)
    added = {name: with_[name] - without[name] for name in with_}
    expected = _penalty_gradients(model, adapter, one_step)
    for name, want in expected.items():
        error = (added[name].double() - want).norm() / want.norm()
        # The difference of two f32 gradients, of which the penalty is a part.
        assert error < 1e-4, f"{name}: relative error {error:.2e}"


def _penalty_gradients(model: Path, adapter: Path, one_step: ModuleType) -> dict[str, Tensor]:
    """λ · ∂/∂(B, A) Σ ‖s BA ⊙ W_past‖² in float64, with everything multiplied out."""
    base = load_base(str(model), dtype="float32", device="cpu")
    peft = one_step.adapted(base, seed=1).double()
    past = Past.of([read_adapter(adapter)])
    scale = one_step.LORA.lora_alpha / one_step.LORA.lora_rank
    trained = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    total = torch.zeros((), dtype=torch.float64)
    for name, b in trained.items():
        if "lora_B" not in name:
            continue
        a = trained[name.replace("lora_B", "lora_A")]
        module = name.removeprefix("base_model.model.").split(".lora_B")[0]
        total = total + ((scale * b @ a) * past.delta(module).double()).square().sum()
    gradients = torch.autograd.grad(LAM * total, list(trained.values()))
    return dict(zip(trained, gradients, strict=True))
