"""`ella sweep` as it is called: what it notes, and what it says before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ella_cli.sweep.study import without_password
from tests.cli.in_process import ella

_SMALL = (
    *("sweep", "--order", "demo-topic,demo-mood", "--device", "cpu", "--dtype", "float32"),
    *("--max-steps", "2", "--limit", "16", "--decode", "rank", "--seeds", "1"),
)


def test_no_run_notes_the_password_of_its_database(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    storage = f"--storage=sqlite:///file:{tmp_path}/study.db?uri=true&password=hunter2"
    where = ("--model", str(tiny_llama), "-o", str(folder), storage)
    words = (*_SMALL, "--validation", "8", "--lambda", "0", *where)
    assert ella(monkeypatch, *words) == 0
    record = json.loads((folder / "trials/lambda-0-seed-0/run.json").read_text())
    assert f"{tmp_path}/study.db?uri=true" in record["command"]
    assert not [
        path for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()
    ]


def test_before_it_starts_a_sweep_refuses_and_warns_as_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("lambda: 7\n")
    words = (*_SMALL, "--config", str(config), "-o", str(tmp_path / "s"), "--dry-run")
    assert ella(monkeypatch, *words) == 2
    assert "must not choose it on test rows" in capsys.readouterr().err
    assert ella(monkeypatch, *words, "--validation", "8", "--lambda", "0,1e3") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the settings file's lambda is not used" in said
    assert "--lambda 0,1000" in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/ella", "postgresql://me:***@host/ella"),
        ("mysql://host/ella?user=me&passwd=secret", "mysql://host/ella?user=me"),
        ("sqlite:///sweep.db", "sqlite:///sweep.db"),
        ("no url", "no url"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
