"""How long work tells a listener how far it is, without knowing whether anyone listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Advance = Callable[[int, str], None]
"""Called with how many units were done since the last call, and a few words on how it goes."""


class Progress(Protocol):
    """Someone who shows progress; the CLI's is a bar with the time left."""

    def begin(self, what: str, total: int) -> Advance:
        """A piece of work of `total` units starts; a later `begin` ends it."""

    def note(self, words: str) -> None:
        """Something worth a line of its own happened."""

    def warn(self, words: str) -> None:
        """Something the user should know, however little they want to hear."""


class Silence:
    """A listener that shows nothing."""

    def begin(self, what: str, total: int) -> Advance:
        return lambda done, words: None

    def note(self, words: str) -> None:
        return

    def warn(self, words: str) -> None:
        return


SILENCE: Progress = Silence()
