"""The guide to a task of one's own does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ella_cli.tasks import build_prompt, load_task
from ella_cli.tasks.columns import ANSWER_NAMES, TEXT_NAMES
from ella_cli.tasks.folders import DEFAULT_INSTRUCTION
from ella_cli.tasks.spec import METRICS, TaskSpec

WriteFolder = Callable[..., Path]

GUIDE = (Path(__file__).parents[2] / "docs/guides/your-own-task.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_its_example_files_give_its_example_prompt(write_folder: WriteFolder) -> None:
    csv = _block("csv")
    settings = "\n".join(line for line in _block("yaml").splitlines() if "columns" not in line)
    folder = write_folder("x", {"train.csv": csv, "test.csv": csv, "task.yaml": settings})
    task = load_task(str(folder))
    prompt = str(build_prompt(task.spec, task.train[0], header=False))
    # The published frame ends the list of options with a space, which the guide cannot show.
    assert prompt.replace(" \n", "\n") + "\n" in GUIDE
    header = str(build_prompt(task.spec, task.train[0], header=True)).removesuffix(prompt)
    assert header == "Task:own\nDataset:parcels\n"
    assert "`Task:own` and `Dataset:parcels`" in GUIDE


def test_its_task_yaml_with_columns_is_understood(write_folder: WriteFolder) -> None:
    rows = "subject,body,kind\ns,b,praise\n"
    files = {"train.csv": rows, "test.csv": rows, "task.yaml": _block("yaml")}
    assert load_task(str(write_folder("x", files))).train[0].text == "s: b"


def test_it_names_every_key_and_metric() -> None:
    ours = {"kind", "dataset", "hub"}
    for field in fields(TaskSpec):
        assert f"`{field.name}`" in GUIDE or field.name in ours, field.name
    for metric in METRICS:
        assert f"`{metric}`" in GUIDE
    assert DEFAULT_INSTRUCTION in GUIDE


def test_the_column_names_it_lists_are_found() -> None:
    line = GUIDE[GUIDE.index("**Columns**") : GUIDE.index("If there\nare just two")]
    for name in re.findall(r"`(\w+)`", line):
        assert name in TEXT_NAMES + ANSWER_NAMES
