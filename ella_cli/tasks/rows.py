"""Rows of text and answer, the task they make up, and the ways to take some of them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ella_cli.errors import TaskError
from ella_cli.tasks.spec import TaskSpec, normal_form

# Test rows and held-out rows are drawn with this one seed, whatever the run's own seed is: runs
# that differ in their seed are then scored on the same rows.
_TEST_SEED = 0


@dataclass(frozen=True)
class Row:
    """One example; `text` is what goes into the prompt, unchanged."""

    text: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A task with the rows that are used.

    Attributes:
        spec: the description, with the labels that hold for these rows.
        train: rows to learn from.
        test: rows to score on; held-out train rows where a validation share was asked for.
        fingerprint: SHA-256, hex, over the rows used, in order.
        warnings: what the user should know about the rows, a sentence each.
        origin: where the rows came from: a folder, the hub, or the seeded grammar.
    """

    spec: TaskSpec
    train: tuple[Row, ...]
    test: tuple[Row, ...]
    fingerprint: str
    warnings: tuple[str, ...] = ()
    origin: str = ""

    @cached_property
    def train_digest(self) -> str:
        """SHA-256, hex, over the rows that are learned from, whatever is scored."""
        return fingerprint(self.train, ())

    @cached_property
    def test_digest(self) -> str:
        """SHA-256, hex, over what is asked and how answers are scored, whatever was trained on."""
        facts = f"{self.spec.digest} {fingerprint((), self.test)}"
        return hashlib.sha256(facts.encode()).hexdigest()


def make_task(
    spec: TaskSpec,
    train: Sequence[Row],
    test: Sequence[Row],
    *,
    limit: int | None,
    limit_test: int | None,
    validation: int,
    seed: int,
    origin: str,
    warnings: Sequence[str] = (),
) -> Task:
    """Holds out, takes a part, counts the overlap and fingerprints.

    Raises:
        TaskError: no rows, or fewer train rows than are to be held out.
    """
    notes = list(warnings)
    overlap = _overlap(train, test)
    if overlap and not validation:
        notes.append(
            f"{overlap} of {len(test)} test rows are also in train; scores will be too high"
        )
    if validation:
        train, test = _hold_out(spec, train, validation)
    if limit is not None:
        train = balanced_sample(train, limit, seed)
    most = limit if limit_test is None else limit_test
    if most is not None:
        test = balanced_sample(test, most, _TEST_SEED)
    for split, rows in (("train", train), ("test", test)):
        if not rows:
            raise TaskError(
                f"task {spec.name!r} has no {split} rows ({origin})",
                hint="each of train and test needs at least one row",
            )
    return Task(spec, tuple(train), tuple(test), fingerprint(train, test), tuple(notes), origin)


def balanced_sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows: a seeded shuffle, then label after label in turn, as far as each lasts.

    Free-text answers are nearly all different, so for them it is the shuffle alone. If there are
    no more than `count` rows, all are kept in their own order.
    """
    if len(rows) <= count:
        return list(rows)
    shuffled = random.Random(seed).sample(range(len(rows)), len(rows))
    # The n-th row of a label goes before the n+1-th of any other; sorting is stable, so ties stay
    # in shuffled order.
    seen: dict[str, int] = {}
    turn: dict[int, int] = {}
    for index in shuffled:
        answer = rows[index].answer
        turn[index] = seen[answer] = seen.get(answer, -1) + 1
    return [rows[index] for index in sorted(shuffled, key=turn.__getitem__)[:count]]


def fingerprint(train: Sequence[Row], test: Sequence[Row]) -> str:
    """SHA-256, hex, over the rows in order; changes with any letter, row, order or split."""
    digest = hashlib.sha256()
    for split, rows in (("train", train), ("test", test)):
        for row in rows:
            line = json.dumps([split, row.text, row.answer], ensure_ascii=False)
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _overlap(train: Sequence[Row], test: Sequence[Row]) -> int:
    known = {normal_form(row.text) for row in train}
    return sum(normal_form(row.text) in known for row in test)


def _hold_out(spec: TaskSpec, rows: Sequence[Row], count: int) -> tuple[list[Row], list[Row]]:
    if count >= len(rows):
        raise TaskError(
            f"task {spec.name!r} has {len(rows)} train rows, so {count} cannot be held out",
            hint=f"hold out at most {len(rows) // 2}",
        )
    held = balanced_sample(rows, count, _TEST_SEED)
    texts = {normal_form(row.text) for row in held}
    return [row for row in rows if normal_form(row.text) not in texts], held
