"""Task folders on disk: where they lie under `--data`, and what files make one up.

Understood as they come:

    TASK/{train,test}.jsonl + labels.json          {"sentence", "label"}       our own layout
    KIND/DATASET/{train,dev,test}.json + labels.json   [{"sentence", "label"}, ...]   O-LoRA
    TASK/{train,eval,test}.json                    [{"prompt", "answer"}, ...]   TRACE
    any folder with a train and a test file as CSV, TSV, JSON or JSONL, and perhaps a task.yaml
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ella_cli.errors import TaskError
from ella_cli.tasks.columns import rows_of
from ella_cli.tasks.labels import find_labels, hold_to_labels, read_labels
from ella_cli.tasks.records import SUFFIXES, read_records
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import TaskSpec, normal_form, plain_name, read_spec

# How deep below --data a task's folder may lie: benchmark/kind/dataset.
_DEPTH = 3

DEFAULT_INSTRUCTION = "What is the label of the following text? Choose one from the option."


@dataclass(frozen=True)
class Contents:
    """A folder's rows and the spec that fits them."""

    spec: TaskSpec
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    notes: tuple[str, ...]


def find_folder(spec: TaskSpec, data: Path) -> Path | None:
    """The task's folder under `data`, or None.

    Raises:
        TaskError: `data` is not a folder, or holds the task more than once at the same depth.
    """
    if not data.is_dir():
        raise TaskError(f"--data {data} is not a folder", hint="name the folder of the tasks")
    names = {plain_name(spec.name), plain_name(spec.dataset or spec.name)}
    for level in _levels(data):
        found = [
            folder for folder in level if plain_name(folder.name) in names and _has_train(folder)
        ]
        if len(found) > 1:
            raise TaskError(
                f"{data} holds {spec.name} {len(found)} times: "
                + ", ".join(str(folder.relative_to(data)) for folder in found),
                hint=f"choose one, for example --data {found[0].parent}",
            )
        if found:
            return found[0]
    return None


def read_published(folder: Path, spec: TaskSpec) -> Contents:
    """A built-in task's rows; its own labels.json goes before the spec's labels.

    Raises:
        TaskError: a file is missing or unusable.
    """
    labels = folder / "labels.json"
    if spec.labels and labels.exists():
        spec = dataclasses.replace(spec, labels=read_labels(labels))
    rows: dict[str, list[Row]] = {}
    notes: list[str] = []
    for split in ("train", "test"):
        read, more = rows_of_file(split_file(folder, split), spec)
        rows[split], stray = hold_to_labels(spec, read, split, drop=True)
        notes += more + stray
    return Contents(spec, tuple(rows["train"]), tuple(rows["test"]), tuple(notes))


def read_own(folder: Path) -> Contents:
    """A user's folder; what task.yaml does not say is found in the rows.

    Raises:
        TaskError: a file is missing or unusable, or a row lies outside the given labels.
    """
    if not folder.is_dir():
        raise TaskError(f"{folder} is not a folder", hint="a task is a folder with train and test")
    spec = own_spec(folder)
    if spec.hub is not None:
        raise TaskError(
            f"{folder} has a key `hub` in its task.yaml, but its rows lie in its files",
            hint="take the key out",
        )
    train, train_notes = rows_of_file(split_file(folder, "train"), spec)
    test, test_notes = rows_of_file(split_file(folder, "test"), spec)
    notes = train_notes + test_notes
    if not spec.labels:
        spec, more = find_labels(spec, train, test)
        notes += more
    notes += _unlearnt(spec, train)
    train, _ = hold_to_labels(spec, train, "train", drop=False)
    test, _ = hold_to_labels(spec, test, "test", drop=False)
    return Contents(_filled(spec), tuple(train), tuple(test), tuple(notes))


def own_spec(folder: Path) -> TaskSpec:
    """What task.yaml and labels.json say, else the folder's name and nothing more."""
    name, source = folder.resolve().name, "your own"
    described = next((folder / name for name in ("task.yaml", "task.yml")
                      if (folder / name).exists()), None)  # fmt: skip
    spec = (
        read_spec(described, defaults={"name": name, "source": source})
        if described
        else TaskSpec(name, source=source)
    )
    labels = folder / "labels.json"
    if not spec.labels and labels.exists():
        spec = dataclasses.replace(spec, labels=read_labels(labels))
    return spec


def split_file(folder: Path, split: str) -> Path:
    """The file of a split.

    Raises:
        TaskError: there is none, or more than one.
    """
    named = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = [path for path in named if path.is_file()]
    if len(found) > 1:
        raise TaskError(
            f"{folder} has {' and '.join(path.name for path in found)}", hint="keep one of them"
        )
    odd = next((path for path in named if path.exists() or path.is_symlink()), None)
    if not found and odd is not None:
        raise TaskError(
            f"{odd} is no file" if odd.exists() else f"{odd} is a link to nothing",
            hint="put the file itself there",
        )
    if not found:
        there = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        raise TaskError(
            f"{folder} has no {split} file (train and test as .csv, .tsv, .json or .jsonl); "
            f"there is {', '.join(there) or 'no such file'}",
            hint="move a tenth of the rows into a test file, to score on rows never trained on"
            if split == "test"
            else "name the file to learn from train.csv or train.jsonl",
        )
    return found[0]


def rows_of_file(path: Path, spec: TaskSpec) -> tuple[list[Row], list[str]]:
    return rows_of(read_records(path), path, spec.columns)


def _filled(spec: TaskSpec) -> TaskSpec:
    """Own tasks that say nothing get a question if they have labels, and none if they do not."""
    if spec.metric is None:
        # Only one of a set of labels can be expected word for word.
        spec = dataclasses.replace(spec, metric="accuracy" if spec.labels else "rouge-l")
    if spec.instruction or not spec.frame:
        return spec
    if spec.labels:
        return dataclasses.replace(spec, instruction=DEFAULT_INSTRUCTION)
    return dataclasses.replace(spec, frame=False)


def _unlearnt(spec: TaskSpec, train: list[Row]) -> list[str]:
    shown = {normal_form(row.answer) for row in train}
    missing = [label for label in spec.labels if normal_form(label) not in shown]
    return [f"no train row has the label {label!r}" for label in missing]


def _levels(data: Path) -> Iterator[list[Path]]:
    level = [data]
    yield level
    for _ in range(_DEPTH):
        level = sorted(
            child for folder in level for child in _children(folder)
            if child.is_dir() and not child.name.startswith(".")
        )  # fmt: skip
        yield level


def _children(folder: Path) -> list[Path]:
    """What lies in it; nothing where it may not be looked into, as a disk's `lost+found`."""
    try:
        return list(folder.iterdir())
    except PermissionError:
        return []


def _has_train(folder: Path) -> bool:
    return any((folder / f"train{suffix}").is_file() for suffix in SUFFIXES)
