"""Run as a program: adds and drops one adapter for ever, in a child that the test may kill.

It imports once; for every line on stdin it forks a child and prints the child's id, then "gone"
when that has ended.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from ella_cli.past import accumulate, read_past


def add_and_drop(path: Path, adapter: Path) -> None:
    torch.set_num_threads(1)
    while True:
        held = any(task.name == adapter.name for task in read_past(path).tasks)
        if held:
            accumulate([], path, drop=[adapter.name])
        else:
            accumulate([adapter], path)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    path, adapter = Path(sys.argv[1]), Path(sys.argv[2])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            add_and_drop(path, adapter)
        _say(str(child))
        os.waitpid(child, 0)
        _say("gone")


if __name__ == "__main__":
    main()
