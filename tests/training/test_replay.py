"""Replay keeps a few rows of each past task, the same ones for good."""

from __future__ import annotations

from pathlib import Path

from ella_cli.adapter import read_adapter
from ella_cli.config import TrainSettings
from ella_cli.model.base import load_base
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.replay import kept_rows
from ella_cli.training.task import train_task


def test_a_share_of_each_task_is_kept_and_stays_the_same() -> None:
    tasks = [load_task(name, limit=200) for name in ("demo-topic", "demo-mood")]
    kept = kept_rows(tasks, 0.01, seed=0)
    assert [len(task.train) for task in kept] == [2, 2]
    assert all(set(few.train) <= set(task.train) for few, task in zip(kept, tasks, strict=True))
    # At a later stage more tasks are past, and what was kept of the first is still that.
    assert kept_rows(tasks[:1], 0.01, seed=0)[0].train == kept[0].train
    assert kept_rows(tasks, 0.01, seed=1)[0].train != kept[0].train
    assert len(kept_rows(tasks, 0.001, seed=0)[0].train) == 1


def test_what_is_kept_is_learned_with_the_new_rows_and_not_measured(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(
        method="replay", learning_rate=0.02, lora_dropout=0.0, curvature_rows=8
    )
    new, old = load_task("demo-mood", limit=16), load_task("demo-topic", limit=16)
    kept = kept_rows([old], 1.0, seed=0)
    plain = Assignment("demo-mood", [new])
    mixed = Assignment("demo-mood", [new], replayed=kept)
    without = train_task(base, plain, settings, tmp_path / "without")
    manifest = train_task(base, mixed, settings, tmp_path / "with")
    assert without["data"]["replayed"] == {}
    assert manifest["data"]["replayed"] == {"demo-topic": 16}
    assert manifest["data"]["train_rows"] == 16
    # An epoch is over all of them.
    assert (without["steps"], manifest["steps"]) == (2, 4)
    assert manifest["curvature"]["rows"] == without["curvature"]["rows"] == 8
    assert read_adapter(tmp_path / "with").digest != read_adapter(tmp_path / "without").digest
