"""Where a command's words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ella_cli import processes
from ella_cli.errors import StorageError
from ella_cli.names import nameable

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr."),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, help="Show the libraries' logs; twice for debugging ones."
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say only results, warnings and errors.")
]


@dataclass(frozen=True)
class Output:
    """One command's voice.

    `say` for progress and notes (stderr, silent under -q), `warn` for what the user should know
    (stderr, always), `result` for the one thing the command gives (stdout). Words are shown as they
    are: a task or a folder may have brackets in its name.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: int = 0
    stdout: Console = field(default_factory=lambda: _console(stderr=False))
    stderr: Console = field(default_factory=lambda: _console(stderr=True))

    def __post_init__(self) -> None:
        if self.quiet or not self.speaks or not self.stderr.is_terminal:
            # The libraries' own bars; read by tqdm when it is imported, which is after this.
            os.environ["TQDM_DISABLE"] = "1"
        if self.verbose:
            # Read by the libraries when they are imported, which commands do after this.
            for library in ("TRANSFORMERS", "HF_HUB"):
                os.environ[f"{library}_VERBOSITY"] = "debug" if self.verbose > 1 else "info"
            logging.basicConfig(level=logging.DEBUG if self.verbose > 1 else logging.INFO)

    @property
    def speaks(self) -> bool:
        """Of several processes one speaks; only errors are everyone's."""
        return processes.is_main()

    def say(self, words: str, *, label: str = "") -> None:
        if self.speaks and not self.quiet:
            self.stderr.print(Text.assemble((label, "dim"), " " * bool(label), words))

    def warn(self, words: str) -> None:
        if self.speaks:
            self.stderr.print(Text.assemble(("warning:", "yellow"), " ", words))

    def result(self, document: Mapping[str, Any], *shown: RenderableType) -> None:
        """Prints `document` as JSON under --json, else what is `shown`."""
        if self.speaks:
            with _stdout_errors():
                self._print(document, *shown)

    def _print(self, document: Mapping[str, Any], *shown: RenderableType) -> None:
        if self.as_json:
            from ella_cli.files import finite_json

            # All of it or nothing; what JSON has no number for is null.
            whole = json.dumps(finite_json(document), indent=2, ensure_ascii=False, allow_nan=False)
            sys.stdout.write(whole + "\n")
            sys.stdout.flush()
            return
        for renderable in shown:
            # Plain text may be meant for a file, where a wrapped line would be two.
            self.stdout.print(renderable, soft_wrap=isinstance(renderable, str))


@contextmanager
def _stdout_errors() -> Iterator[None]:
    """Makes a StorageError of a full disk behind stdout; a reader that has gone needs no words."""
    try:
        yield
    except OSError as error:
        # What is still in the buffer would fail once more when the process ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise StorageError(
            f"cannot write the result: {error.strerror or error}",
            hint="make room where it is to be written, and give the command again",
        ) from error


class PlainConsole(Console):
    """Lets no control character through but its own: a name or a text may come from a stranger."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def printable(text: str) -> str:
    """The text with a question mark for each control character but line breaks and tabs."""
    return nameable(text, keep="\n\t")


def _console(*, stderr: bool) -> Console:
    return PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
