"""A task killed in its middle goes on from its last checkpoint and ends with the same adapter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Three steps an epoch, so that checkpoints lie inside epochs; dropout draws at every step.
STEPS = ("--max-steps", 30, "--save-steps", 4, "--dtype", "float32", "--learning-rate", "0.01")


def test_a_task_killed_in_its_middle_ends_with_the_same_adapter(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    train = ("train", "--task", "tasks/animals", "--model", tiny_llama, *STEPS)
    _goes_on(ella, tmp_path, *train)
    locks = {".whole.lock", ".killed.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"tasks", "whole", "killed", *locks}


def test_so_does_one_that_steps_in_its_past_s_coordinates(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    train = ("train", "--task", "tasks/animals", "--model", tiny_llama, *STEPS)
    ella(*train, "--curvature-rows", 8, "-o", "first")
    ella("accumulate", "first", "--past", "w")
    _goes_on(ella, tmp_path, *train, "--past", "w", "--optim", "adamw-past")


def _goes_on(ella: Any, folder: Path, *train: object) -> None:
    ella(*train, "-o", "whole")
    _kill_after_a_checkpoint(folder, *train, "-o", "killed")
    (kept,) = folder.glob(".killed.checkpoints-*")
    # What a kill in the middle of writing leaves: the newest, and not to be read.
    half = kept / "checkpoint-29"
    half.mkdir()
    (half / "optimizer.pt").write_bytes(b"cut")

    # What is left of a training by other settings, which will have been for nothing.
    (folder / ".killed.checkpoints-0123456789ab" / "checkpoint-4").mkdir(parents=True)

    assert "going on from checkpoint-" in ella(*train, "-o", "killed").stderr
    weights = "adapter_model.safetensors"
    assert (folder / "killed" / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def _kill_after_a_checkpoint(folder: Path, *command: object) -> None:
    life = subprocess.Popen(
        [sys.executable, "-m", "ella_cli", *map(str, command), "-q"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    # The second checkpoint: some steps were then taken after the first.
    while not any(folder.glob(".killed.checkpoints-*/checkpoint-8/whole")):
        assert life.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        os.sched_yield()
    life.send_signal(signal.SIGKILL)
    life.wait()
