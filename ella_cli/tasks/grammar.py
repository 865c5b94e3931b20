"""The built-in demo tasks: short messages made by a seeded grammar, with nothing to download.

A message may tell what it is about, where it was written, how its writer feels and what it asks
for. Each of the four tasks asks for one of these, and each has a rival of which every message
tells, too; topic and place even have the same labels. The texts thus look alike, what answers one
task misleads in the other, and a small model trained on them in turn forgets.
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
_WORDS = range(20, 46)
# What every message of a task tells besides what is asked.
_RIVALS = {
    "demo-topic": "demo-place",
    "demo-place": "demo-topic",
    "demo-mood": "demo-request",
    "demo-request": "demo-mood",
}


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
    """One message in which `name`'s label is `label`; what else it tells is at random."""
    rival = _RIVALS[name]
    third = chance.choice([other for other in DEMO_NAMES if other not in (name, rival)])
    parts = [_tell(name, label, chance)]
    for other in (rival, third):
        parts.append(_tell(other, chance.choice(_bank(other).spec.labels), chance))
    chance.shuffle(parts)
    opening = _fill(chance.choice(_shared().openings), chance)
    return " ".join([opening, *(_sentence(part, chance) for part in parts)]).strip()


def _tell(name: str, label: str, chance: random.Random) -> str:
    return _fill(chance.choice(_bank(name).sentences[label]), chance)


def _sentence(words: str, chance: random.Random) -> str:
    link = chance.choice(_shared().links)
    if link:
        return f"{link} {words}."
    return words[0].upper() + words[1:] + "."


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
