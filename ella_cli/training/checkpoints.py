"""Checkpoints inside a task: written whole or not at all, and gone on from only if whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ella_cli import files
from ella_cli.errors import StorageError

# Written last: a checkpoint without it was cut off by a kill.
_SEAL = "whole"


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the most steps in `folder`, None if there is none."""
    whole = [seal.parent for seal in folder.glob(f"checkpoint-*/{_SEAL}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def clear_cut_off(folder: Path) -> None:
    """Removes what a kill cut off, which would count among the few that are kept."""
    for found in folder.glob("checkpoint-*"):
        if not (found / _SEAL).is_file():
            shutil.rmtree(found, ignore_errors=True)


@contextmanager
def whole_checkpoint(folder: Path, wait: Callable[[], None], *, main: bool) -> Iterator[None]:
    """Seals the checkpoint that the block writes into `folder`; on an error it is gone.

    Args:
        wait: returns when all processes have called it.
        main: whether this is the process that seals.

    Raises:
        StorageError: it cannot be written, or the disk is full.
    """
    try:
        with files.storage_errors(folder):
            yield
            wait()
            if main:
                files.flush_folder(folder)
                files.write_text(folder / _SEAL, "")
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except RuntimeError as error:
        # What torch.save makes of a write that failed, from its C++ side.
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(
            f"cannot write the checkpoint {folder}",
            hint="check that the disk has room; the same command goes on from one before, if any",
        ) from error
