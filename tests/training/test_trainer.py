"""The optimizers a task can be trained with."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.config import LoraFields, TrainSettings
from ella_cli.errors import NonFiniteError, SettingsError
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.task import train_task
from ella_cli.training.trainer import build_trainer, check_weights


def _one_step(model: Path, folder: Path, optim: str) -> list[torch.Tensor]:
    """B of every module after one step from zero: the step itself."""
    base = load_base(str(model), dtype="float32", device="cpu")
    settings = TrainSettings(
        optim=optim,  # type: ignore[arg-type]
        max_steps=1,
        learning_rate=0.01,
        lora_dropout=0.0,
        limit=16,
        curvature_rows=0,
    )
    task = load_task("demo-topic", limit=16)
    train_task(base, Assignment(task.spec.name, [task]), settings, folder)
    adapter = read_adapter(folder)
    return [adapter.update(name).b for name in adapter.names]


def test_a_step_of_muon_is_orthogonal_and_no_larger_than_adamws_first(
    tiny_llama: Path, tmp_path: Path
) -> None:
    muon = _one_step(tiny_llama, tmp_path / "muon", "muon")
    adamw = _one_step(tiny_llama, tmp_path / "adamw", "adamw")
    for one, other in zip(muon, adamw, strict=True):
        # Every direction alike: singular values within Newton and Schulz's own error of one.
        step = 0.01 * 0.2 * math.sqrt(max(one.shape))
        singular = torch.linalg.svdvals(one / step)
        assert singular.min() > 0.3
        assert singular.max() < 1.4
        # AdamW's first step moves each entry by the learning rate, in whatever direction.
        assert other.abs().max() == pytest.approx(0.01, rel=1e-2)
        assert one.square().mean().sqrt() < other.square().mean().sqrt()


def test_short_rows_are_learned_by_plain_attention(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    flash: list[bool] = []
    base.model.register_forward_pre_hook(
        lambda *_: flash.append(torch.backends.cuda.flash_sdp_enabled())
    )
    settings = TrainSettings(max_steps=2, limit=16, max_source_length=100, curvature_rows=0)
    task = load_task("demo-topic", limit=16)
    train_task(base, Assignment(task.spec.name, [task]), settings, tmp_path / "adapter")
    assert flash == [False, False]


def test_muon_refuses_what_is_no_matrix(tmp_path: Path, tiny_llama: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    with pytest.raises(SettingsError, match=r"Muon orthogonalises matrices, and weight has 4"):
        build_trainer(
            base, torch.nn.Conv2d(2, 2, 3), [], TrainSettings(optim="muon"), seed=0,
            checkpoints=tmp_path,
        )  # fmt: skip


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_every_schedule_warms_up(scheduler: str, tmp_path: Path, tiny_llama: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(
        lr_scheduler_type=scheduler, warmup_steps=4, max_steps=8, learning_rate=1.0,  # type: ignore[arg-type]
    )  # fmt: skip
    model = torch.nn.Linear(2, 2)
    trainer = build_trainer(base, model, [], settings, seed=0, checkpoints=tmp_path)
    trainer.create_optimizer_and_scheduler(8)
    rates = []
    for _ in range(5):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])  # type: ignore[union-attr]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_task_is_trained_on_the_gpu_that_was_named(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_llama), device="cuda:1")
    task = load_task("demo-topic", limit=16)
    settings = TrainSettings(max_steps=2, limit=16, device="cuda:1")
    torch.cuda.reset_peak_memory_stats(0)
    before = torch.cuda.memory_allocated(0)
    train_task(base, Assignment(task.spec.name, [task]), settings, tmp_path / "adapter")
    assert base.device == torch.device("cuda:1")
    assert torch.cuda.max_memory_allocated(0) == before


@pytest.mark.parametrize(
    ("size", "words"), [(1e20, "too large for f32 after step 20"), (math.nan, "is NaN")]
)
def test_weights_that_no_loss_told_of_are_refused(
    size: float, words: str, tiny_llama: Path
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    model = attach_lora(base, LoraFields(lora_rank=2), seed=0)
    check_weights(model, 20)
    for layer in lora_layers(model).values():
        b, _, _ = lora_pair(layer)
        with torch.no_grad():
            b.fill_(size)
    with pytest.raises(NonFiniteError, match=words):
        check_weights(model, 20)
