"""What a task's rows look like in numbers, and whether a folder makes a usable task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ella_cli.errors import TaskError
from ella_cli.tasks.load import load_task
from ella_cli.tasks.rows import Row, Task
from ella_cli.tasks.spec import normal_form

GOOD_FOLDER = """\
a good folder, two columns and a title line are enough:
  my-task/train.csv    text,label
                       "The parcel never came, I want my money back",complaint
                       "When do you open on Sunday?",question
  my-task/test.csv     the same columns, rows that are not in train
  my-task/task.yaml    if you like:  instruction: What does the customer want?
                                     labels: [complaint, question, praise]"""

_FEW_TRAIN_PER_LABEL = 10
_FEW_TEST = 50
_MOST_ONE_LABEL = 0.8


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Attributes:
        rows: how many.
        labels: rows of each label, in label order; empty for free text.
        words_median: of the texts, by white space.
        words_most: of the longest text.
        repeated: rows whose text was there before.
        contradicting: rows whose text was there before with another answer.
    """

    rows: int
    labels: dict[str, int]
    words_median: int
    words_most: int
    repeated: int
    contradicting: int


@dataclass(frozen=True)
class TaskSummary:
    """Both splits, and what the user should know about them.

    Attributes:
        train: counts of the train rows.
        test: counts of the test rows.
        overlap: test rows whose text is in train.
        always_commonest: share of test rows that have the commonest test label: the score of
            answering it always. None for free text.
        warnings: sentences.
    """

    train: SplitSummary
    test: SplitSummary
    overlap: int
    always_commonest: float | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(task: Task) -> TaskSummary:
    train, test = _split(task, task.train), _split(task, task.test)
    known = {normal_form(row.text) for row in task.train}
    overlap = sum(normal_form(row.text) in known for row in task.test)
    commonest = max(test.labels.values()) / test.rows if test.labels else None
    warnings = [*task.warnings, *_doubts(train, test, commonest)]
    return TaskSummary(train, test, overlap, commonest, tuple(warnings))


def check_folder(folder: Path) -> tuple[Task, TaskSummary]:
    """The task a folder of the user's makes.

    Raises:
        TaskError: it makes none; the hint shows what a good one looks like.
    """
    if not folder.is_dir():
        raise TaskError(f"{folder} is not a folder", hint=GOOD_FOLDER)
    try:
        task = load_task(str(folder.resolve()))
    except TaskError as error:
        raise TaskError(error.message, hint=f"{error.hint}\n{GOOD_FOLDER}") from error
    return task, summarise(task)


def _split(task: Task, rows: Sequence[Row]) -> SplitSummary:
    counts = Counter(row.answer for row in rows)
    lengths = [len(row.text.split()) for row in rows]
    answers: dict[str, str] = {}
    repeated = contradicting = 0
    for row in rows:
        text = normal_form(row.text)
        if text in answers:
            repeated += 1
            contradicting += answers[text] != row.answer
        answers.setdefault(text, row.answer)
    return SplitSummary(
        rows=len(rows),
        labels={label: counts[label] for label in task.spec.labels},
        words_median=round(median(lengths)),
        words_most=max(lengths),
        repeated=repeated,
        contradicting=contradicting,
    )


def _doubts(train: SplitSummary, test: SplitSummary, commonest: float | None) -> list[str]:
    doubts = []
    few = [label for label, count in train.labels.items() if 0 < count < _FEW_TRAIN_PER_LABEL]
    if few:
        doubts.append(f"fewer than {_FEW_TRAIN_PER_LABEL} train rows for {_shown(few)}")
    if train.contradicting:
        doubts.append(f"{train.contradicting} train rows repeat a text with another answer")
    if test.rows < _FEW_TEST:
        doubts.append(
            f"{test.rows} test rows leave about ±{_half_width(test.rows):.0%} of chance in a score"
        )
    if len(train.labels) == 1:
        doubts.append("there is only one label, so there is nothing to tell apart")
    elif commonest is not None and commonest > _MOST_ONE_LABEL:
        doubts.append(f"always answering the commonest label would score {commonest:.0%}")
    return doubts


def _half_width(rows: int) -> float:
    """Half of the 95% interval of a share near one half."""
    return float(1.96 * 0.5 / rows**0.5)


def _shown(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 5} more labels" if len(labels) > 5 else ""
    return ", ".join(labels[:5]) + more
