"""What a command lets through of the libraries' own voices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from ella_cli import __version__
from ella_cli.cli.bar import showing_progress
from ella_cli.cli.output import Output
from tests.cli.in_process import ella


@pytest.mark.parametrize("quiet", [True, False])
def test_the_libraries_bars_are_silent_where_no_one_watches(quiet: bool) -> None:
    """As transformers' bar while a GGUF file is unpacked; stderr is a pipe here."""
    code = (
        f"from ella_cli.cli.output import Output; Output(quiet={quiet}); "
        "from tqdm.auto import tqdm; print(*tqdm(range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 1 2\n"
    assert done.stderr == ""


def test_control_characters_do_not_reach_the_terminal(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    evil = "evil\x1b]0;pwned\x07\x1b[2J\x9b\r\ud800 λ"
    table = Table(evil)
    table.add_row(evil)
    output = Output()
    output.say(evil)
    output.warn(evil)
    output.result({}, evil, table)
    with showing_progress(output) as progress:
        progress.note(evil)
    shown = capfdbinary.readouterr()
    for stream in (shown.out, shown.err):
        text = stream.decode()
        assert "evil" in text
        assert "λ" in text
        assert not set(text) & set("\x1b\x07\x9b\r")


def test_json_is_whole_and_has_null_where_there_is_no_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output(as_json=True).result({"a": [1.5, float("nan")], "b": {"c": float("-inf"), "d": ":+1:"}})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": {"c": None, "d": ":+1:"}}
    Output().result({}, ":+1:", Table(":-1:"))
    shown = capsys.readouterr().out
    assert ":+1:" in shown
    assert ":-1:" in shown


@pytest.mark.parametrize("json", [["--json"], []])
def test_a_full_disk_behind_stdout_is_two_lines(json: list[str]) -> None:
    command = [sys.executable, "-m", "ella_cli", "tasks", "ls", *json]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: cannot write the result: No space left on device"
    )
    assert len(done.stderr.splitlines()) == 2


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "ella_cli", "tasks", "ls", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_version_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ella(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"ella {__version__}\n"


def test_brackets_in_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[name]")
    table.add_row("[/cell]")
    output = Output()
    output.say("to runs/[old]", label="wrote")
    output.warn("no [/x] in a[b]")
    output.result({}, "modules: [q, v]", table)
    with showing_progress(output) as progress:
        progress.begin("train [/task]", 1)(1, "loss [/1]")
        progress.note("[bold]λ")
    shown = capsys.readouterr()
    assert "wrote to runs/[old]" in shown.err
    assert "warning: no [/x] in a[b]" in shown.err
    assert "train [/task]" in shown.err
    assert "[bold]λ" in shown.err
    assert "modules: [q, v]" in shown.out
    assert "[name]" in shown.out
    assert "[/cell]" in shown.out
