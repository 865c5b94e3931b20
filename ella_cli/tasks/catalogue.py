"""The built-in tasks with where their rows would come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ella_cli.tasks.folders import find_folder
from ella_cli.tasks.grammar import DEMO_NAMES, demo_spec
from ella_cli.tasks.orders import ORDERS
from ella_cli.tasks.spec import TaskSpec, builtin_names, builtin_spec


@dataclass(frozen=True)
class Entry:
    """A task; `found` says where its rows would come from: a folder, the hub, or neither."""

    spec: TaskSpec
    found: str


def catalogue(data: Path | None = None) -> tuple[Entry, ...]:
    """All built-in tasks, in the order of the published orders, the demo's last.

    Raises:
        TaskError: `data` is not a folder, or holds a task twice.
    """
    published = dict.fromkeys([*ORDERS["4"], *ORDERS["trace"], *builtin_names()])
    specs = [spec for name in published if (spec := builtin_spec(name)) is not None]
    entries = [Entry(spec, _found(spec, data)) for spec in specs]
    return (*entries, *(Entry(demo_spec(name), "built in") for name in DEMO_NAMES))


def _found(spec: TaskSpec, data: Path | None) -> str:
    if data is not None:
        folder = find_folder(spec, data)
        return str(folder) if folder else "not there"
    return f"hub: {spec.hub.dataset}" if spec.hub else "local files only (--data)"
