"""Runs that differ in their seed only, as one group with a name that tells it from the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ella_cli.report.provenance import base_model
from ella_cli.report.results import RunResults

# Settings that say where or how fast something is computed, or which sample was drawn.
_NO_DIFFERENCE = {
    "seed",
    "device",
    "per_device_eval_batch_size",
    "save_steps",
    "output_dir",
    "cells",
}
# Already in the label, or shown as the order.
_SHOWN = {"method", "lambda", "order"}
_MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Group:
    name: str
    runs: tuple[RunResults, ...]


def groups_of(runs: Sequence[RunResults]) -> tuple[Group, ...]:
    """First seen first; names are distinct."""
    found: dict[str, list[RunResults]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
    members = [tuple(group) for group in found.values()]
    names = [_name(group[0], [other[0] for other in members]) for group in members]
    return tuple(
        Group(f"{name} [{group[0].name}]" if names.count(name) > 1 else name, group)
        for name, group in zip(names, members, strict=True)
    )


def _key(run: RunResults) -> str:
    facts = [run.label, list(run.accuracy.order), base_model(run), run.decode, _settings(run)]
    return json.dumps(facts, sort_keys=True, default=str)


def _settings(run: RunResults) -> dict[str, object]:
    settings = run.settings.get("settings")
    known = settings if isinstance(settings, Mapping) else {}
    return {key: value for key, value in known.items() if key not in _NO_DIFFERENCE}


def _name(run: RunResults, firsts: Sequence[RunResults]) -> str:
    """The label; where another group has the same, with the settings in which they differ."""
    alike = [other for other in firsts if other.label == run.label and other is not run]
    if not alike:
        return run.label
    own = _settings(run)
    keys = [
        key
        for key in own
        if key not in _SHOWN and any(_settings(other).get(key) != own[key] for other in alike)
    ]
    if not keys:
        return run.label
    return f"{run.label} ({', '.join(f'{key} {own[key]}' for key in keys[:_MOST_DIFFERENCES])})"
