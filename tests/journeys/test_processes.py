"""Several processes: one result, the same as of one process with the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Without dropout, which draws differently where a batch is cut differently. The last step of an
# epoch of 20 rows has 4, all of one process.
SAME = (
    "--limit",
    20,
    "--dtype",
    "float32",
    "--learning-rate",
    "0.01",
    "--lora-dropout",
    0,
    "--max-steps",
    4,
)


def _two_processes(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launch, "-m", "ella_cli", *map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        check=False,
    )


def test_two_processes_learn_an_order_as_one_does(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    order = ("--order", "tasks/animals,tasks/colours", "--decode", "rank")
    run = ("run", *order, "--model", tiny_llama, *SAME, "--per-device-train-batch-size")
    one = json.loads(ella(*run, 8, "-o", "one", "--json").stdout)
    done = _two_processes(tmp_path, *run, 4, "-o", "two", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    # One of them speaks.
    two = json.loads(done.stdout)
    assert two["matrix"] == one["matrix"]
    for stage in ("01-animals", "02-colours"):
        folders = [tmp_path / run / "stages" / stage for run in ("one", "two")]
        curves = [json.loads((f / "ella.json").read_text())["curves"] for f in folders]
        for name in ("ce", "penalty"):
            assert curves[1][name] == pytest.approx(curves[0][name], rel=1e-4)
        alone, shared = (load_file(f / "adapter_model.safetensors") for f in folders)
        for name, weight in alone.items():
            assert (shared[name] - weight).norm() < 1e-3 * weight.norm()
    names = [{str(p.relative_to(tmp_path / run)) for p in (tmp_path / run).rglob("*")}
             for run in ("one", "two")]  # fmt: skip
    assert names[0] == names[1]

    # Another number of processes is another global batch.
    said = ella(*run, 4, "-o", "two", code=2).stderr
    assert "its processes is 2, now it is 1" in said


def test_a_penalty_too_large_for_one_process_stops_both(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    train = ("train", "--model", tiny_llama, *SAME, "--curvature-rows", 0)
    ella(*train, "--task", "tasks/animals", "-o", "first")
    shutil.copytree(tmp_path / "first", tmp_path / "back")
    # Of the modules, each process takes every other one. Through weights so large no gradient
    # would come: two updates take them back and leave their energy.
    for folder, size in (("first", 1e25), ("back", -1e25)):
        file = tmp_path / folder / "adapter_model.safetensors"
        weights = load_file(file)
        name = next(name for name in weights if "lora_B" in name)
        weights[name] *= size
        save_file(weights, file, {"format": "pt"})
    past = ("--past", "past.safetensors")
    as_matrices = ("--energy", "abs", "--store", "dense")
    ella("accumulate", "first", "back", *past, *as_matrices, "--force")
    done = _two_processes(
        tmp_path, *train, "--task", "tasks/colours", *past, "-o", "second",
        "--lambda", 1, "--per-device-train-batch-size", 4,
    )  # fmt: skip
    assert done.returncode != 0
    assert "the penalty of model.layers" in done.stderr
    assert not (tmp_path / "second").exists()


def test_the_last_good_weights_of_several_processes_are_numbers(
    tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    train = ("train", "--model", tiny_llama, *SAME, "--curvature-rows", 0, "-o", "far")
    far = ("--task", "tasks/animals", "--learning-rate", 1e38)
    done = _two_processes(tmp_path, *train, *far)
    assert done.returncode != 0
    assert "the last good adapter is in far.last-good" in done.stderr
    kept = load_file(tmp_path / "far.last-good" / "adapter_model.safetensors")
    assert all(bool(weight.isfinite().all()) for weight in kept.values())


def test_processes_that_never_started_are_missed(ella: Any, tiny_llama: Path) -> None:
    """What accelerate 1.15 makes of `launch --num_processes 2 --cpu`."""
    asked = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in asked.items():
            patch.setenv(name, value)
        said = ella("run", "--order", "demo", "--model", tiny_llama, "-o", "run", code=2).stderr
    assert "has started one" in said
    assert "torchrun --nproc-per-node" in said
