"""A task that cannot be learned leaves its last good adapter and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.config import TrainSettings
from ella_cli.errors import NonFiniteError
from ella_cli.model.base import load_base
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.task import train_task


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_adapter(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(learning_rate=1e20, max_steps=20, max_grad_norm=1e20, limit=32)
    task = load_task("demo-topic", limit=32)
    folder = tmp_path / "adapter"
    with pytest.raises(NonFiniteError, match=r"last good adapter is in .*adapter\.last-good"):
        train_task(base, Assignment(task.spec.name, [task]), settings, folder)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.last-good"]
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    kept = PeftModel.from_pretrained(plain, tmp_path / "adapter.last-good")
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())
