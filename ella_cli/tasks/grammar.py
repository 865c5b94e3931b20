"""The built-in demo tasks: short messages made by a seeded grammar, with nothing to download.

Every message tells four things: how its writer feels, what it is about, what it asks for, and
where it was written. Each of the four tasks asks for one of them and takes the others as noise.
The texts of all tasks thus look alike, some labels belong to two tasks, and what is learned for
one task misleads in the next: a small model trained on them in turn forgets.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ella_cli.tasks.folders import Contents
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import TaskSpec, spec_from

DEMO_NAMES = ("demo-topic", "demo-mood", "demo-place", "demo-request")

TRAIN_ROWS = 400
TEST_ROWS = 200

_FOLDER = Path(__file__).parent / "demo"
_WORDS = range(25, 56)
# Hard rows quote somebody of whom another label is true.
_HARD_SHARE = 0.1


@dataclass(frozen=True)
class _Bank:
    """One task's labels with the sentences that tell them."""

    spec: TaskSpec
    sentences: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Shared:
    slots: Mapping[str, Sequence[str]]
    openings: Sequence[str]
    links: Sequence[str]
    quotes: Sequence[str]


def demo_spec(name: str) -> TaskSpec:
    return _bank(name).spec


def demo_contents(name: str) -> Contents:
    """400 train and 200 test rows, labels in equal numbers as far as possible, all texts distinct.

    The rows are the same on every machine; a run's seed does not touch them.
    """
    bank = _bank(name)
    # One stream a task, so that adding a task leaves the others' rows alone.
    chance = random.Random(f"ella {name} {bank.spec.version}")
    labels = bank.spec.labels
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < TRAIN_ROWS + TEST_ROWS:
        label = labels[len(rows) % len(labels)]
        text = _message(name, label, chance)
        if len(text.split()) in _WORDS and text not in seen:
            seen.add(text)
            rows.append(Row(text, label))
    train, test = rows[:TRAIN_ROWS], rows[TRAIN_ROWS:]
    chance.shuffle(train)
    chance.shuffle(test)
    return Contents(bank.spec, tuple(train), tuple(test), ())


def _message(name: str, label: str, chance: random.Random) -> str:
    """One message in which `name`'s label is `label`; what other tasks ask for is at random."""
    shared = _shared()
    parts = [_tell(name, label, chance)]
    others = [other for other in DEMO_NAMES if other != name]
    if chance.random() < _HARD_SHARE:
        wrong = chance.choice([one for one in _bank(name).spec.labels if one != label])
        quote = chance.choice(shared.quotes).replace("{other}", _tell(name, wrong, chance))
        parts.append(_fill(quote, chance))
        # The quote takes the room of one thing told.
        others.remove(chance.choice(others))
    for other in others:
        parts.append(_tell(other, chance.choice(_bank(other).spec.labels), chance))
    chance.shuffle(parts)
    opening = _fill(chance.choice(shared.openings), chance)
    return " ".join([opening, *(_sentence(part, chance) for part in parts)]).strip()


def _tell(name: str, label: str, chance: random.Random) -> str:
    return _fill(chance.choice(_bank(name).sentences[label]), chance)


def _sentence(words: str, chance: random.Random) -> str:
    link = chance.choice(_shared().links)
    if link:
        return f"{link} {words}."
    # The first letter, past a quotation mark.
    start = 1 if words.startswith('"') else 0
    return words[:start] + words[start].upper() + words[start + 1 :] + "."


def _fill(pattern: str, chance: random.Random) -> str:
    for slot, values in _shared().slots.items():
        while "{" + slot + "}" in pattern:
            pattern = pattern.replace("{" + slot + "}", chance.choice(values), 1)
    return pattern


@functools.cache
def _bank(name: str) -> _Bank:
    path = _FOLDER / f"{name}.yaml"
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    sentences = document.pop("sentences")
    facts = {
        "name": name,
        "kind": "demo",
        "source": "made by ella_cli.tasks.grammar",
        "licence": "Apache-2.0",
    }
    spec = spec_from({**facts, **document}, path)
    assert set(sentences) == set(spec.labels), path
    return _Bank(spec, sentences)


@functools.cache
def _shared() -> _Shared:
    return _Shared(**yaml.safe_load((_FOLDER / "shared.yaml").read_text(encoding="utf-8")))
