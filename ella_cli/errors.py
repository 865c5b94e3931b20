"""The errors a user can cause, and what each tells them.

    EllaError
    ├── SettingsError     a flag or a line of run.yaml is not usable
    ├── TaskError         a task is unknown, or its rows or labels are not usable
    ├── ModelError        a base model cannot be found, loaded or adapted
    ├── AdapterError      an adapter folder is incomplete, foreign or of a kind ELLA cannot add
    ├── PastError         a W_past file is damaged, foreign or does not fit
    ├── ShapeError        two tensors that must fit do not
    ├── NonFiniteError    a loss, a penalty or a weight became NaN or infinite
    └── StorageError      the disk is full, or a path cannot be read or written

Each says what, which and what next. `ella_cli.cli.main` turns them into one or two lines on
stderr and exit code 2; a sweep notes them beside the run that failed and goes on. Our own
mistakes are `assert`s.
"""

from __future__ import annotations


class EllaError(Exception):
    """What went wrong, with the values that disagree; `hint` is something the user can do."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(EllaError):
    pass


class TaskError(EllaError):
    pass


class ModelError(EllaError):
    pass


class AdapterError(EllaError):
    pass


class PastError(EllaError):
    pass


class ShapeError(EllaError):
    pass


class NonFiniteError(EllaError):
    pass


class StorageError(EllaError):
    pass
