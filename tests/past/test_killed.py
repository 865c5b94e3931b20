"""Killed at any moment, the file is the old past or the new one; writers wait for each other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ella_cli.past import accumulate, read_past
from tests.past.conftest import MakeAdapter

SHAPES = {f"layers.{i}.q": (128, 128) for i in range(3)}


@contextmanager
def accumulating(path: Path, adapter: Path) -> Iterator[subprocess.Popen[str]]:
    program = Path(__file__).with_name("accumulating_process.py")
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(program), str(path), str(adapter)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("store", ["factored", "dense"])
def test_sixty_kills_at_random_moments_leave_the_old_past_or_the_new(
    store: str, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    path = folder / "w.safetensors"
    first = make_adapter("first", 0, shapes=SHAPES)
    second = make_adapter("second", 1, shapes=SHAPES)
    without = accumulate([first], path, store=store).past
    # Views of a file that is renamed over keep the old file.
    allowed = {
        ("first",): {name: without.delta(name).clone() for name in without.names},
    }
    both = accumulate([first, second], tmp_path / "both.safetensors", store=store).past
    allowed["first", "second"] = {name: both.delta(name) for name in both.names}
    chance = random.Random(0)
    seen: set[tuple[str, ...]] = set()
    before: tuple[str, ...] = ("first",)
    # Kept near the time that one change takes, whatever else the machine does.
    longest_wait = 0.06
    half_written = 0
    with accumulating(path, second) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(60):
            process.stdin.write("go\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            threading.Event().wait(chance.uniform(0, longest_wait))
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"

            past = read_past(path)
            past.verify()
            names = tuple(task.name for task in past.tasks)
            seen.add(names)
            longest_wait *= 1.25 if names == before else 0.8
            before = names
            for name, delta in allowed[names].items():
                torch.testing.assert_close(past.delta(name), delta, rtol=1e-5, atol=1e-5)
            half_written += bool(list(folder.glob(".*.tmp")))
    assert len(seen) == 2
    assert half_written > 0
    accumulate([make_adapter("third", 2, shapes=SHAPES)], path)
    assert {file.name for file in folder.iterdir()} == {"w.safetensors", ".w.safetensors.lock"}


def test_two_processes_that_add_to_one_file_both_arrive(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    code = (
        "import sys; from pathlib import Path; from ella_cli.past import accumulate\n"
        "for folder in sys.argv[2:]: accumulate([Path(folder)], Path(sys.argv[1]))"
    )
    groups = [[make_adapter(f"p{p}-{i}", 10 * p + i) for i in range(4)] for p in range(2)]
    root = str(Path(__file__).parents[2])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), *map(str, group)],
            env=os.environ | {"PYTHONPATH": root},
        )
        for group in groups
    ]
    assert [process.wait() for process in running] == [0, 0]
    past = read_past(path)
    past.verify()
    assert {task.name for task in past.tasks} == {f.name for group in groups for f in group}
