"""Files and folders that appear whole or not at all, and the hashes that name them.

A write goes to a temporary name in the same folder, is flushed to the disk, and is renamed over
the target; the folder is then flushed too. Killed at any moment, a reader finds the old file or
the new one. No rename replaces a folder that holds something, so that takes two: killed between
them, the old folder lies beside its place and comes back at the next try.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ella_cli.errors import StorageError

# Read in pieces that stay in the L2 cache.
_HASH_CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it becomes `path`, else it is gone.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    with storage_errors(path):
        path = behind_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path, Path.is_file)
        temporary, hold = _held(path, _new_file)
        try:
            yield temporary
            # mkstemp makes 0600; a new file is as readable as any other of the user, and one that
            # was there as readable as it was.
            known = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
            temporary.chmod(0o666 & ~_umask() if known is None else known)
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(hold)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on a clean exit it becomes `path`, else it is gone.

    An existing `path` is replaced only at the very end, by two renames.

    Raises:
        StorageError: the parent cannot be written, or the disk is full.
    """
    with storage_errors(path):
        path = behind_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _bring_back(path)
        _clear_abandoned(path, Path.is_dir)
        temporary, hold = _held(path, tempfile.mkdtemp)
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    # safetensors makes 0600, whatever the umask.
                    file.chmod(0o666 & ~_umask())
            flush_folder(temporary)
            if path.exists():
                outgoing = temporary.with_suffix(".old")
                try:
                    path.rename(outgoing)
                    temporary.rename(path)
                finally:
                    if not path.exists() and outgoing.exists():
                        outgoing.rename(path)
                shutil.rmtree(outgoing, ignore_errors=True)
            else:
                temporary.rename(path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(hold)


def _held(path: Path, make: Callable[..., str]) -> tuple[Path, int]:
    """A new temporary for `path`, and a descriptor that says it is at work until closed.

    The lock goes with the process, however it ends.

    Args:
        make: makes a file or a folder; takes what `tempfile.mkdtemp` does.
    """
    while True:
        made = Path(make(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        with suppress(FileNotFoundError):
            hold = os.open(made, os.O_RDONLY)
            with suppress(OSError):  # not every network's file system has locks
                fcntl.flock(hold, fcntl.LOCK_EX)
            if made.exists():
                return made, hold
            # Another process took it for abandoned before it was held.
            os.close(hold)


def _new_file(*, prefix: str, suffix: str, dir: Path) -> str:  # noqa: A002, as tempfile names it
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=dir)
    os.close(handle)
    return name


def _clear_abandoned(path: Path, kind: Callable[[Path], bool]) -> None:
    """Removes the temporaries of `path`, files or folders, that killed processes left."""
    # Eight characters, as tempfile draws them: `.w.safetensors.….tmp` is not what is left of w.
    for found in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        if found.is_symlink() or not kind(found):
            continue
        with suppress(OSError):
            hold = os.open(found, os.O_RDONLY)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if found.is_dir():
                    shutil.rmtree(found, ignore_errors=True)
                else:
                    found.unlink()
            finally:
                os.close(hold)


def behind_links(path: Path) -> Path:
    """Where `path` really lies: what a link names is written, and the link stays one.

    Raises:
        StorageError: its links lead in a circle.
    """
    return _resolved(path) if path.is_symlink() else path


def _resolved(path: Path) -> Path:
    try:
        found = path.resolve()
    except RuntimeError:
        # How Python before 3.13 reports a circle; later ones give a link.
        found = path
    if found.is_symlink():
        raise _storage_error(path, "its links lead in a circle")
    return found


def clear_left_behind(parent: Path) -> None:
    """Removes the temporary folders of `new_folder` in `parent` that killed processes left.

    Nothing may be writing there.
    """
    for found in parent.glob(".*.????????.tmp"):
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)


def check_replaceable(path: Path, sign: str) -> None:
    """Makes sure that `new_folder(path)` will do, before hours of work are done for it.

    Args:
        path: where a folder is to appear; nothing, an empty folder or one of its kind may be there.
        sign: a file that every folder of its kind has.

    Raises:
        StorageError: a file or a folder of other things is there, or its parent is not writable.
    """
    if path.name in ("", "..") or _resolved(path) == Path.cwd():
        raise StorageError(
            f"{path} is a folder that something works in, and cannot be replaced",
            hint="give a new --output-dir",
        )
    path = behind_links(path)
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} is a file", hint="give a new --output-dir")
    if path.is_dir() and any(path.iterdir()) and not (path / sign).is_file():
        raise StorageError(
            f"{path} holds other things, which would be replaced",
            hint=f"give a new --output-dir; only a folder with {sign} is replaced",
        )
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def bring_back(path: Path) -> None:
    """What `new_folder` put aside for a new one that then never came; nothing may be writing there.

    Raises:
        StorageError: the parent cannot be written.
    """
    with storage_errors(path):
        _bring_back(behind_links(path))


def _bring_back(path: Path) -> None:
    # Eight characters, as mkdtemp draws them: `.v1.5.….old` is not what was put aside of v1.
    aside = sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.old"))
    if aside and not path.exists():
        aside.pop().rename(path)
    for left_behind in aside:
        shutil.rmtree(left_behind, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """As UTF-8; what of a file's name is no text is escaped as Python and JSON do."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, document: Any) -> None:
    """Strict JSON: NaN and infinity are refused, for no other reader would take them."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite_json(document: Any) -> Any:
    """The document with null for what JSON has no number for."""
    if isinstance(document, Mapping):
        return {key: finite_json(one) for key, one in document.items()}
    if isinstance(document, list | tuple):
        return [finite_json(one) for one in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def read_json(path: Path) -> Any:
    """
    Raises:
        StorageError: the file is missing, unreadable or not JSON.
    """
    with storage_errors(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}"
    except (ValueError, RecursionError) as error:
        # No text, a number of thousands of digits, lists within lists within lists.
        reason = str(error)[:100]
    raise StorageError(
        f"{path} is not JSON: {reason}",
        hint="it was changed or cut by hand; restore it or make it again",
    )


def read_object(path: Path) -> dict[str, Any]:
    """
    Raises:
        StorageError: as `read_json`, or it holds something else than names and values.
    """
    document = read_json(path)
    if isinstance(document, dict):
        return document
    raise StorageError(
        f"{path} holds {type(document).__name__}, not names and values",
        hint="it was changed by hand; restore it or make it again",
    )


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    digest = hashlib.sha256()
    with storage_errors(path), path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Makes a StorageError of what the system has against reading or writing at `path`."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error.filename or path, error.strerror or str(error)) from error
    except SafetensorError as error:
        # How the library reports a full disk; its other words are no matter of storage.
        if "I/O error" not in str(error):
            raise
        raise _storage_error(path, str(error).rpartition("I/O error: ")[2]) from error


def flush_folder(folder: Path) -> None:
    """Waits until everything in `folder` is on the disk."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)


def _storage_error(where: object, reason: str) -> StorageError:
    return StorageError(
        f"cannot use {where}: {reason}",
        hint="check that the path exists, that it may be written, and that the disk has room",
    )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
