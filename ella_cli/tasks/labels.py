"""The label set of a task's rows: found where none is given, and held to where one is."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ella_cli.errors import TaskError
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import TaskSpec, near_names, normal_form

# An answer set is taken for labels if it is small against the rows and its texts are short.
_MOST_LABELS = 100
_LONGEST_LABEL = 60
# A published file may hold a few rows outside its label set (MNLI's test file has 1.7%); more
# means that these are not this task's rows.
_MOST_STRAY = 0.1


def read_labels(path: Path) -> tuple[str, ...]:
    """`labels.json`: a list of texts.

    Raises:
        TaskError: not JSON, not a list of texts, or empty.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(
            f"cannot read {path}: {error!s:.160}", hint='write ["yes", "no"]'
        ) from error
    if not isinstance(document, list) or not all(isinstance(one, str) for one in document):
        raise TaskError(f"{path} is not a list of texts", hint='write ["yes", "no"]')
    if not document:
        raise TaskError(
            f"{path} gives an empty label set",
            hint="list the labels, or remove the file to have them found in the rows",
        )
    return tuple(document)


def find_labels(
    spec: TaskSpec, train: Sequence[Row], test: Sequence[Row]
) -> tuple[TaskSpec, list[str]]:
    """`spec` with the labels its rows show, or as free text, and notes for the user.

    Answers are labels if there are at most 100 of them, each no longer than 60 characters, and
    they repeat: at least twice on average. Labels are sorted, so that they do not depend on the
    rows' order; numbers by their value.
    """
    spellings = Counter(row.answer for row in (*train, *test))
    repeated = 2 * len(spellings) <= spellings.total()
    if (
        spec.metric not in (None, "accuracy")
        or len(spellings) > _MOST_LABELS
        or not repeated
        or any(len(label) > _LONGEST_LABEL or "\n" in label for label in spellings)
    ):
        return spec, []
    # Of two spellings that differ in case or white space only, the commoner is the label.
    best: dict[str, str] = {}
    for label, _ in spellings.most_common():
        best.setdefault(normal_form(label), label)
    notes = [
        f"the label {label!r} is taken for {best[normal_form(label)]!r}"
        for label in sorted(spellings)
        if best[normal_form(label)] != label
    ]
    labels = tuple(sorted(best.values(), key=_label_order))
    return dataclasses.replace(spec, labels=labels), notes


def hold_to_labels(
    spec: TaskSpec, rows: Sequence[Row], split: str, *, drop: bool
) -> tuple[list[Row], list[str]]:
    """Rows with their answers spelt as the labels are; case and white space aside.

    Args:
        spec: with labels; without, the rows come back as they are.
        rows: the rows.
        split: "train" or "test", for words.
        drop: leave stray rows out and note it, as published files need; else they are an error.

    Raises:
        TaskError: a stray row where none may be, or more than a tenth of them.
    """
    if not spec.labels:
        return list(rows), []
    spelling = {normal_form(label): label for label in spec.labels}
    held = [
        Row(row.text, spelling[normal_form(row.answer)])
        for row in rows
        if normal_form(row.answer) in spelling
    ]
    stray = [row.answer for row in rows if normal_form(row.answer) not in spelling]
    if not stray:
        return held, []
    if not drop or len(stray) > _MOST_STRAY * len(rows):
        near = near_names(stray[0], spec.labels)
        raise TaskError(
            f"{spec.name}: {len(stray)} of {len(rows)} {split} rows have a label outside the set, "
            f"first {stray[0]!r:.60}",
            hint=(f"did you mean {near[0]!r}? " if near else "")
            + f"labels are {_shown(spec.labels)}",
        )
    return held, [
        f"left out {len(stray)} of {len(rows)} {split} rows, "
        f"whose label is not in the set (first {stray[0]!r:.60})"
    ]


def _label_order(label: str) -> tuple[int, int, str]:
    number = label.removeprefix("-")
    return (0, int(label), label) if number.isdecimal() else (1, 0, label)


def _shown(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
