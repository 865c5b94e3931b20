"""Two little tasks of a user's own, as CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

_ANIMALS = {"cat": "feline", "dog": "canine", "bird": "avian"}
_COLOURS = {"red": "warm", "blue": "cold", "green": "cold"}


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """A folder `tasks` beside the process: animals/ and colours/, train.csv and test.csv each."""
    for name, words in (("animals", _ANIMALS), ("colours", _COLOURS)):
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 24), ("test", 9)):
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                out = csv.writer(file)
                out.writerow(["text", "label"])
                for i in range(count):
                    word = list(words)[i % 3]
                    out.writerow([f"{split} {i}: the {word} sat on the mat", words[word]])
    return tmp_path / "tasks"
