"""What is said of a task's rows, and of a folder that is to become a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks import load_task
from ella_cli.tasks.catalogue import catalogue
from ella_cli.tasks.summary import GOOD_FOLDER, check_folder, summarise

WriteFolder = Callable[..., Path]


def _csv(*rows: tuple[str, str]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


def test_rows_labels_and_lengths_are_counted(write_folder: WriteFolder) -> None:
    train = [("one two three", "a"), ("One  two THREE", "b"), ("x", "a"), ("y y", "a")]
    folder = write_folder(
        "t", {"train.csv": _csv(*train), "test.csv": _csv(("x", "a"), ("new one", "b"))}
    )
    _, summary = check_folder(folder)
    assert summary.train.rows == 4
    assert summary.train.labels == {"a": 3, "b": 1}
    assert summary.train.words_most == 3
    assert summary.train.repeated == 1
    assert summary.train.contradicting == 1
    assert summary.overlap == 1
    assert summary.always_commonest == 0.5


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([("t1", "a"), ("t2", "b")] * 20, [("t1", "a")], "1 of 1 test rows are also in train"),
        ([("t1", "a"), ("T1", "b")] * 5, [("x", "a")], "repeat a text with another answer"),
        ([(f"t{i}", "a") for i in range(20)], [("x", "a")], "only one label"),
        ([("t1", "a"), ("t2", "b")] * 2, [("x", "a")], "fewer than 10 train rows for a, b"),
        ([("t1", "a"), ("t2", "b")] * 9, [("x", "a"), ("y", "a")], "would score 100%"),
        ([("t1", "a"), ("t2", "b")] * 9, [("x", "a"), ("y", "b")], "2 test rows leave about ±69%"),
    ],
)
def test_what_makes_scores_doubtful_is_said(
    write_folder: WriteFolder,
    train: list[tuple[str, str]],
    test: list[tuple[str, str]],
    words: str,
) -> None:
    folder = write_folder("t", {"train.csv": _csv(*train), "test.csv": _csv(*test)})
    assert words in "\n".join(check_folder(folder)[1].warnings)


def test_a_good_task_has_no_warnings() -> None:
    assert summarise(load_task("demo-topic")).warnings == ()


def test_the_sketch_of_a_good_folder_is_one(write_folder: WriteFolder) -> None:
    rows_part, _, yaml_part = GOOD_FOLDER.partition("if you like:")
    lines = [line.strip() for line in rows_part.splitlines()]
    header = next(line.split()[-1] for line in lines if "train.csv" in line)
    csv = "\n".join([header, *(line for line in lines if line.startswith('"'))]) + "\n"
    task_yaml = "\n".join(line.strip() for line in yaml_part.splitlines())
    folder = write_folder("my-task", {"train.csv": csv, "test.csv": csv, "task.yaml": task_yaml})
    task, _ = check_folder(folder)
    assert task.spec.labels == ("complaint", "question", "praise")
    assert task.spec.instruction == "What does the customer want?"


def test_a_folder_that_makes_no_task_shows_a_good_one(write_folder: WriteFolder) -> None:
    folder = write_folder("t", {"train.csv": _csv(("a", "b"))})
    with pytest.raises(TaskError, match="has no test file") as caught:
        check_folder(folder)
    assert caught.value.hint.endswith(GOOD_FOLDER)


def test_the_catalogue_says_where_rows_would_come_from(write_folder: WriteFolder) -> None:
    folder = write_folder("data/sst2", {"train.jsonl": [], "test.jsonl": []})
    found = {entry.spec.name: entry.found for entry in catalogue(folder.parent)}
    assert found["sst2"] == str(folder)
    assert found["imdb"] == "not there"
    assert found["demo-mood"] == "built in"
    found = {entry.spec.name: entry.found for entry in catalogue()}
    assert found["imdb"] == "hub: stanfordnlp/imdb"
    assert "--data" in found["FOMC"]
