from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.in_process import ella
from tests.report.conftest import write_run  # noqa: F401 - a fixture

WriteRun = Callable[..., Path]


def test_a_page_is_written_and_warnings_go_to_stderr(
    write_run: WriteRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "page.html"
    assert ella(monkeypatch, "report", str(write_run()), "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "the penalty ruled amazon" in said.err.replace("\n", " ")
    assert "with: ella report " in out.read_text(encoding="utf-8")


def test_json_on_stdout_is_one_document(
    write_run: WriteRun,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ella(monkeypatch, "report", str(write_run()), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["figures"]["oa"]["value"] == 0.5


def test_markdown_on_stdout_is_the_same_tables(
    write_run: WriteRun,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ella(monkeypatch, "report", str(write_run()), "--md") == 0
    assert "| OA | 0.500 |" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nowhere"], ["{run}", "--out", "page.pdf"], ["{run}", "{run}"]])
def test_bad_input_gets_two_lines_and_nothing_is_written(
    words: list[str],
    write_run: WriteRun,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert ella(monkeypatch, "report", *(word.format(run=run) for word in words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["error", "next"]
    assert sorted(tmp_path.iterdir()) == before
