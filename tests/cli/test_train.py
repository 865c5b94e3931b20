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


def test_an_adapter_that_was_put_aside_is_back_before_another_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aside = tmp_path / ".a.abcdefgh.old"
    aside.mkdir()
    (aside / "adapter_config.json").write_text("{}")
    train = ("train", "--task", "demo-topic", "--limit", "8", "-o", str(tmp_path / "a"))
    # A command at work there may just be putting it aside.
    with locks.sole(locks.lock_beside(tmp_path / "a"), tmp_path / "a"):
        assert ella(monkeypatch, *train) == 2
    assert aside.is_dir()
    assert ella(monkeypatch, *train, "--model", "./nowhere") == 2
    assert "no model folder" in capsys.readouterr().err
    assert (tmp_path / "a" / "adapter_config.json").is_file()
