"""`ella train` and `ella measure` as they are called: what they say comes next."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli import locks
from tests.cli.in_process import ella


def test_the_next_command_can_be_typed_where_a_folder_has_a_space(
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ("--task", "demo-topic", "--limit", "8", "--device", "cpu")
    how = ("--dtype", "float32", "--max-steps", "1", "--curvature-rows", "0")
    train = ("train", *task, "--model", str(tiny_llama), *how)
    following = "ella accumulate 'a 1' --past wpast.safetensors"
    assert ella(monkeypatch, *train, "-o", "a 1") == 0
    assert following in capsys.readouterr().out
    assert ella(monkeypatch, "measure", "a 1", *task, "--curvature-rows", "2") == 0
    said = capsys.readouterr()
    assert following in said.out + said.err


def test_an_adapter_is_trained_by_one_command_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A folder that a link leads to is the same.
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with locks.sole(locks.lock_beside(tmp_path / "a"), tmp_path / "a"):
        for folder in ("a", "link"):
            where = str(tmp_path / folder)
            assert ella(monkeypatch, "train", "--task", "demo-topic", "-o", where) == 2
            assert "another command is at work in" in capsys.readouterr().err
