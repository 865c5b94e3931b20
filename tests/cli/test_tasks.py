"""`ella tasks` as a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Ella = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def parcels(tmp_path: Path) -> Path:
    folder = tmp_path / "parcels"
    folder.mkdir()
    rows = "".join(f"parcel {i} is late,complaint\nwhen is day {i}?,question\n" for i in range(30))
    (folder / "train.csv").write_text("text,label\n" + rows)
    (folder / "test.csv").write_text("text,label\nmy parcel broke,complaint\nwhere?,question\n")
    return folder


def test_ls_lists_tasks_and_orders(ella: Ella) -> None:
    shown = ella("tasks", "ls").stdout
    assert "dbpedia" in shown
    assert "free text" in shown
    assert "hub: fancyzhx/ag_news" in shown
    document = json.loads(ella("tasks", "ls", "--json").stdout)
    assert len(document["tasks"]) == 15 + 8 + 4
    assert document["orders"]["1"] == ["dbpedia", "amazon", "yahoo", "agnews"]


def test_show_gives_counts_and_a_prompt_in_both_variants(ella: Ella) -> None:
    shown = ella("tasks", "show", "demo-mood").stdout
    assert "prompt without header" in shown
    assert "Dataset:demo-mood" in shown
    document = json.loads(ella("tasks", "show", "demo-mood", "--json").stdout)
    assert document["train"]["rows"] == 400
    assert document["test"]["rows"] == 200
    prompts = document["example"]["prompts"]
    assert prompts["with header"].endswith(prompts["without header"])
    assert document["example"]["answer"] in document["labels"]


def test_validate_says_what_a_folder_makes(ella: Ella, parcels: Path) -> None:
    done = ella("tasks", "validate", parcels)
    assert "parcels: usable, with the warnings above" in done.stdout
    assert "2 test rows leave" in done.stderr
    document = json.loads(ella("tasks", "validate", parcels, "--json").stdout)
    assert document["labels"] == ["complaint", "question"]
    assert document["overlap"] == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "test.csv").unlink(), "has no test file"),
        (lambda folder: (folder / "labels.json").write_text("[]"), "empty label set"),
        (
            lambda folder: (folder / "test.csv").write_text("text,label\na,b,c\n"),
            "line 2: 3 fields under 2 columns",
        ),
    ],
)
def test_validate_refuses_a_folder_and_shows_a_good_one(
    ella: Ella, parcels: Path, change: Callable[[Path], object], reason: str
) -> None:
    change(parcels)
    done = ella("tasks", "validate", parcels, code=2)
    assert reason in done.stderr
    assert "my-task/train.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unknown_task_gets_a_near_name_in_two_lines(ella: Ella) -> None:
    done = ella("tasks", "show", "amazn", code=2)
    assert "did you mean amazon?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
