"""Runs that differ in their seed only, as one group with a name that tells it from the others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ella_cli.config import FREE, optim_in_effect
from ella_cli.report.metrics import Metric, Spread, spread
from ella_cli.report.provenance import base_model
from ella_cli.report.results import RunResults

# What is computed where or how fast, and which sample was drawn.
_NO_DIFFERENCE = FREE | {"seed", "data", "output_dir"}
# What results say of themselves, which a run that was scored anew has in other words than its own.
_OF_SCORES = (
    "base_model", "header", "validation", "test_rows", "importance", "optim", "lambda", "rho",
    "adapters", "past",
)  # fmt: skip
# Already in the label, or shown as the order.
_SHOWN = {"method", "lambda", "order"}
_MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Group:
    name: str
    runs: tuple[RunResults, ...]

    @property
    def settings_known(self) -> bool:
        return bool(_settings(self.runs[0]))

    @property
    def unseen(self) -> set[frozenset[tuple[int, int]]]:
        """The cells that forgetting did not see; more than one set where its runs differ."""
        return {run.accuracy.unseen_by_forgetting for run in self.runs}

    def spread(self, metric: Metric) -> Spread | None:
        """Over the runs; None where one lacks the figure, or took it from other cells."""
        present = [v for run in self.runs if (v := metric.value(run.accuracy)) is not None]
        unlike = metric.key == "forgetting" and len(self.unseen) > 1
        return None if unlike or len(present) < len(self.runs) else spread(present)


def groups_of(runs: Sequence[RunResults]) -> tuple[Group, ...]:
    """First seen first; names are distinct."""
    found: dict[str, list[list[RunResults]]] = {}
    for run in runs:
        groups = found.setdefault(_key(run), [])
        open_to = [group for group in groups if all(_two_draws(one, run) for one in group)]
        if open_to:
            open_to[0].append(run)
        else:
            groups.append([run])
    members = [tuple(group) for groups in found.values() for group in groups]
    firsts = [(_label(group), group[0]) for group in members]
    names = [
        _name(label, run, [one for same, one in firsts if same == label and one is not run])
        for label, run in firsts
    ]
    return tuple(
        Group(f"{name} [{group[0].name}]" if names.count(name) > 1 else name, group)
        for name, group in zip(names, members, strict=True)
    )


def _two_draws(one: RunResults, other: RunResults) -> bool:
    """Whether runs of one key are two draws of one thing: other seeds, and not other precisions."""
    precisions = {one.document.get("precision"), other.document.get("precision")} - {None}
    return one.seed != other.seed and None not in (one.seed, other.seed) and len(precisions) < 2


def _key(run: RunResults) -> str:
    said = [_said(run).get(key) for key in _OF_SCORES]
    # Of results kept alone only the name says what they were made with.
    made = _settings(run) or _name_but_for_the_seed(run)
    facts = [run.kind, run.accuracy.order, base_model(run), run.decode, made, said]
    return json.dumps(facts, sort_keys=True, default=str)


def _said(run: RunResults) -> dict[str, object]:
    """What results say, or else their run's settings; an older ella counted tasks in full."""
    settings = _settings(run)
    optim = optim_in_effect(settings) if settings else "not said"
    older = {"importance": 1.0, "optim": optim}
    return {key: run.document.get(key) or older.get(key) for key in _OF_SCORES}


def _name_but_for_the_seed(run: RunResults) -> str:
    """`ella-s` for ella-s0 of seed 0 and for ella-s1 of seed 1."""
    last = re.search(r"\d+(?=\D*$)", run.name)
    if last is None or int(last[0]) != run.seed:
        return run.name
    return run.name[: last.start()] + run.name[last.end() :]


def _settings(run: RunResults) -> dict[str, object]:
    settings = run.settings.get("settings")
    known = dict(settings) if isinstance(settings, Mapping) else {}
    if "optim" in known:
        known["optim"] = optim_in_effect(known)
    return {key: value for key, value in known.items() if key not in _NO_DIFFERENCE}


def _made_with(run: RunResults) -> dict[str, object]:
    """Its settings; of results kept alone, those that they say themselves."""
    return _settings(run) or {key: _said(run)[key] for key in ("optim", "importance")}


def _label(group: Sequence[RunResults]) -> str:
    first = group[0]
    if all(run.label == first.label for run in group):
        return first.label
    # Each seed found a λ of its own.
    return f"{first.kind} {first.rule}"


def _name(label: str, run: RunResults, alike: Sequence[RunResults]) -> str:
    """The label; where other groups have the same, with the settings in which they differ.

    Args:
        run: the group's first.
        alike: the first of every other group of that label.
    """
    if not alike:
        return label
    own = _made_with(run)
    keys = [
        key
        for key in own
        if key not in _SHOWN and any(_made_with(other).get(key) != own[key] for other in alike)
    ]
    if not keys:
        return label
    return f"{label} ({', '.join(f'{key} {own[key]}' for key in keys[:_MOST_DIFFERENCES])})"
