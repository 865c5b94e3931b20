"""In which order tasks come: the published orders, and lists of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import yaml

from ella_cli.errors import TaskError
from ella_cli.tasks.grammar import DEMO_NAMES
from ella_cli.tasks.spec import builtin_names, builtin_spec, unknown_task


def _published() -> Mapping[str, tuple[str, ...]]:
    document = yaml.safe_load((Path(__file__).parent / "orders.yaml").read_text(encoding="utf-8"))
    return MappingProxyType({str(name): tuple(tasks) for name, tasks in document.items()})


ORDERS: Mapping[str, tuple[str, ...]] = _published()


def resolve_order(text: str) -> tuple[str, ...]:
    """The tasks of an order: "4", "trace", or a list such as "dbpedia,amazon,./my-task".

    Built-in tasks come back under their own names, folders as they were written.

    Raises:
        TaskError: empty, an unknown task, or the same task twice.
    """
    name = text.strip()
    if name.casefold() in ORDERS:
        return ORDERS[name.casefold()]
    parts = [part.strip() for part in name.split(",") if part.strip()]
    if not parts:
        raise TaskError(
            "the order names no task", hint="orders are " + ", ".join(ORDERS) + ", or a list a,b,c"
        )
    if len(parts) == 1 and parts[0].isdecimal():
        raise TaskError(f"no order is called {name!r}", hint="orders are " + ", ".join(ORDERS))
    tasks = tuple(task_name(part) for part in parts)
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise TaskError(f"the order holds {twice[0]!r} twice", hint="name each task once")
    return tasks


def task_name(text: str) -> str:
    """`text` as it is if it is a path, else the built-in task's own name.

    Raises:
        TaskError: neither, with names that look alike.
    """
    if text in DEMO_NAMES or is_written_as_path(text):
        return text
    spec = builtin_spec(text)
    if spec is not None:
        return spec.name
    if Path(text).is_dir():
        return text
    raise unknown_task(text, known_names())


def is_written_as_path(text: str) -> bool:
    """Whether only a path can be meant: ./amazon is a folder, amazon the built-in task."""
    return "/" in text or "\\" in text or text.startswith((".", "~"))


def known_names() -> tuple[str, ...]:
    """All tasks that need no path: published ones and the demo's."""
    return (*builtin_names(), *DEMO_NAMES)
