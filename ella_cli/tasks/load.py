"""From a task's name or path to its rows."""

from __future__ import annotations

from pathlib import Path

from ella_cli.errors import TaskError
from ella_cli.tasks.folders import Contents, find_folder, read_own, read_published
from ella_cli.tasks.grammar import DEMO_NAMES, demo_contents
from ella_cli.tasks.orders import is_written_as_path, known_names
from ella_cli.tasks.rows import Task, make_task
from ella_cli.tasks.spec import TaskSpec, builtin_spec, unknown_task


def load_task(
    name_or_path: str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    limit_test: int | None = None,
    validation: int = 0,
    seed: int = 0,
) -> Task:
    """The rows of a task, the same ones for the same arguments.

    Looked for in turn: the demo's own tasks, a folder of that name under `data`, a folder at that
    path, the hub.

    Args:
        name_or_path: a built-in task, or a folder with train and test files.
        data: folder of local tasks, in our layout, O-LoRA's or TRACE's. Where it is given, the
            hub is not asked.
        limit: at most so many train and so many test rows: a seeded shuffle, then label after
            label in turn as far as each lasts.
        limit_test: the same for test rows alone; where it is given, `limit` is for train alone.
        validation: put that many train rows in the place of the test rows and out of train, to
            choose a setting without looking at test. Taken before `limit`.
        seed: draws the train rows under `limit`. Test and held-out rows do not depend on it, so
            that runs with different seeds are scored on the same rows.

    Raises:
        TaskError: unknown, not found, or rows or labels that cannot be used.
    """
    for flag, most in (("limit", limit), ("limit-test", limit_test)):
        if most is not None and most < 1:
            raise TaskError(f"--{flag} {most} leaves no rows", hint="give 1 or more")
    contents, origin = _read(name_or_path, data)
    return make_task(
        contents.spec,
        contents.train,
        contents.test,
        limit=limit,
        limit_test=limit_test,
        validation=validation,
        seed=seed,
        origin=origin,
        warnings=contents.notes,
    )


def _read(name: str, data: Path | None) -> tuple[Contents, str]:
    if name in DEMO_NAMES:
        return demo_contents(name), "seeded grammar"
    spec = None if is_written_as_path(name) else builtin_spec(name)
    if spec is None:
        folder = _own_folder(name, data)
        return read_own(folder), str(folder)
    if data is None:
        from ella_cli.tasks.hub import read_hub

        return read_hub(spec)
    found = find_folder(spec, data)
    if found is None:
        raise TaskError(
            f"{data} has no folder for the task {spec.name} ({spec.dataset or spec.name})",
            hint="it should hold its train and test files; without --data the hub is asked",
        )
    return read_published(found, spec), str(found)


def _own_folder(name: str, data: Path | None) -> Path:
    if data is not None and not is_written_as_path(name):
        found = find_folder(TaskSpec(name=name), data)
        if found is not None:
            return found
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if is_written_as_path(name):
        raise TaskError(
            f"no folder {name}", hint="a task of your own is a folder with train and test files"
        )
    raise unknown_task(name, known_names())
