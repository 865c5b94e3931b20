"""What every command over a sequence loads: its tasks, its base model once, an adapter's ground."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from ella_cli.adapter import Adapter
from ella_cli.config import DataFields, ModelFields
from ella_cli.errors import SettingsError
from ella_cli.model.base import Base, load_base
from ella_cli.progress import SILENCE, Progress
from ella_cli.tasks import Task, load_task

# Rows of results that are no stage: the untouched model, and each task learned alone.
_TAKEN = ("base", "single")


def load_tasks(
    order: Sequence[str], settings: DataFields, progress: Progress = SILENCE
) -> list[Task]:
    """The tasks of an order with their rows; what is odd about them is noted.

    Raises:
        TaskError: a task cannot be found or used.
        SettingsError: two tasks go by one name, or one by a name that results need.
    """
    tasks: list[Task] = []
    for name in order:
        task = load_task(
            name,
            data=settings.data,
            limit=settings.limit,
            limit_test=settings.limit_test,
            validation=settings.validation,
            seed=settings.seed,
        )
        if task.spec.name in _TAKEN:
            raise SettingsError(
                f"no task can be called {task.spec.name!r} here: results keep other scores there",
                hint="rename its folder, or give another name in task.yaml",
            )
        if any(task.spec.name == other.spec.name for other in tasks):
            raise SettingsError(
                f"two tasks of the order are called {task.spec.name!r}",
                hint="rename one folder: stages and scores are kept by the task's name",
            )
        for warning in task.warnings:
            progress.warn(f"{task.spec.name}: {warning}")
        tasks.append(task)
    return tasks


def base_once(settings: ModelFields, progress: Progress) -> Callable[[], Base]:
    """Loads the base at the first call, if there is one.

    Raises:
        ModelError: when called, and it cannot be loaded.
    """

    @cache
    def load() -> Base:
        progress.note(f"loading {settings.model}")
        return load_base(settings.model, dtype=settings.dtype, device=settings.device)

    return load


def ground_of(adapter: Adapter) -> str | None:
    """Fingerprint of the base an adapter was made on, None if it does not say."""
    return ((adapter.manifest or {}).get("base") or {}).get("fingerprint")
