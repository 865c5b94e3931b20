"""Progress as a bar on stderr: what runs, how far it is, how it goes, how long it will take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from ella_cli.cli.output import Output
from ella_cli.progress import Advance, Progress, Silence


class Bars:
    """One bar at a time; a finished one stays on the screen as a line."""

    def __init__(self, display: RichProgress, output: Output) -> None:
        self._display = display
        self._output = output
        self._current: TaskID | None = None

    def begin(self, what: str, total: int) -> Advance:
        if self._current is not None:
            self._display.stop_task(self._current)
        # Not before there is a bar: an empty display leaves an empty line.
        self._display.start()
        bar = self._current = self._display.add_task(what, total=total, words="")

        def advance(done: int, words: str) -> None:
            self._display.update(bar, advance=done, words=words)

        return advance

    def note(self, words: str) -> None:
        self._display.console.print(Text(words, style="dim"))

    def warn(self, words: str) -> None:
        self._output.warn(words)


class OnlyWarnings(Silence):
    """What --quiet leaves of progress."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def warn(self, words: str) -> None:
        self._output.warn(words)


@contextmanager
def showing_progress(output: Output) -> Iterator[Progress]:
    """Bars while the block runs; only warnings under --quiet."""
    if output.quiet or not output.speaks:
        yield OnlyWarnings(output)
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn(
            "{task.fields[words]}", markup=False, table_column=Column(no_wrap=True, ratio=1)
        ),
    )
    display = RichProgress(*columns, console=output.stderr, expand=True)
    try:
        yield Bars(display, output)
    finally:
        if display.live.is_started:
            display.stop()
