"""What an export gave, and the folder it may be written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ella_cli.errors import StorageError
from ella_cli.files import new_folder


@dataclass(frozen=True)
class ModuleError:
    """`relative` is ‖W_past − what was written‖_F / ‖W_past‖_F of one module."""

    name: str
    rank: int
    relative: float


@dataclass(frozen=True)
class Exported:
    """
    Attributes:
        folder: now complete.
        exactness: in words, for the user and the model card.
        modules: where ranks were cut, the error of each.
    """

    folder: Path
    form: str
    exactness: str
    modules: tuple[ModuleError, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when all is written.

    Raises:
        StorageError: `folder` holds something already, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            f"{folder} is there already and not empty",
            hint="give a new --output-dir, or remove that one first",
        )
    with new_folder(folder) as temporary:
        yield temporary
