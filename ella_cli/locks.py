"""One command at a time: a lock that goes with its process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ella_cli import files, processes
from ella_cli.errors import SettingsError


def lock_beside(path: Path) -> Path:
    """`.amazon.lock` for `amazon`; for a link, beside what it names."""
    path = files.behind_links(path)
    return path.parent / f".{path.name}.lock"


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Waits until no other command changes the file `path`, and keeps it to this one.

    Raises:
        StorageError: the folder cannot be written.
    """
    with files.storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock_beside(path))
        held.acquire()
    try:
        yield
    finally:
        held.release()


@contextmanager
def sole(lock: Path, place: Path) -> Iterator[None]:
    """Keeps `place` to this command; of several processes the main one holds it for all.

    Args:
        lock: the file that says so; it is made, and stays.

    Raises:
        SettingsError: another command is at work there.
        StorageError: the lock's folder cannot be written.
    """
    if not processes.is_main():
        yield
        return
    with files.storage_errors(place):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise SettingsError(
                f"another command is at work in {place}",
                hint="wait until it has finished, or give another --output-dir",
            ) from None
    try:
        yield
    finally:
        held.release()
