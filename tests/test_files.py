"""What may be replaced, and how the system's and the libraries' words about storage come out."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ella_cli.errors import StorageError
from ella_cli.files import (
    bring_back,
    check_replaceable,
    new_folder,
    read_json,
    replacing,
    write_text,
)


def test_only_nothing_an_empty_folder_or_one_of_its_kind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for name in ("empty", "own", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "sign").touch()
    (tmp_path / "other" / "letter.txt").touch()
    for name in ("new", "deep/er/new", "empty", "own"):
        check_replaceable(tmp_path / name, "sign")
    for name, words in (
        ("file", "is a file"),
        ("file/below", "cannot use"),
        ("other", "holds other things"),
    ):
        with pytest.raises(StorageError, match=words):
            check_replaceable(tmp_path / name, "sign")


@pytest.mark.parametrize("name", [".", "..", "/", "../here"])
def test_a_folder_that_something_works_in_is_not_replaced(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StorageError, match="cannot be replaced"):
        check_replaceable(Path(name), "sign")


def test_what_safetensors_has_against_a_path_is_a_matter_of_storage(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"cannot use .*new: .*os error"),
        new_folder(tmp_path / "new") as temporary,
    ):
        save_file({"w": torch.zeros(1)}, temporary / "no" / "such" / "folder")
    assert not any(tmp_path.iterdir())


def test_a_new_folder_is_as_readable_as_the_umask_lets_it_be(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with new_folder(tmp_path / "new") as temporary:
        save_file({"w": torch.zeros(1)}, temporary / "w.safetensors")
    mode = (tmp_path / "new" / "w.safetensors").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "content", [b'{"a": 1', b"\xff\xfe\xfa", b"[" * 100_000, b"[" + b"1" * 5000 + b"]"]
)
def test_what_is_not_json_is_a_matter_of_storage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"file\.json is not JSON: "):
        read_json(tmp_path / "file.json")


def test_a_folder_put_aside_for_a_new_one_that_never_came_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    aside = tmp_path / ".adapter.abcdefgh.old"
    aside.mkdir()
    (aside / "sign").write_text("old")
    # Who only looks may meet another command between its two renames.
    check_replaceable(folder, "sign")
    assert aside.is_dir()
    bring_back(folder)
    assert (folder / "sign").read_text() == "old"
    assert not aside.exists()
    # Nor is another folder's taken for it, or taken away.
    other = tmp_path / ".adapter.last-good.abcdefgh.old"
    other.mkdir()
    bring_back(folder)
    assert other.is_dir()


def test_a_new_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "sign").write_text("old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(folder) as temporary:
        (temporary / "sign").write_text("new")
    assert (folder / "sign").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    ("writer", "part"), [("new_folder", "temporary / 'part'"), ("replacing", "temporary")]
)
def test_what_a_killed_process_left_is_cleared_and_what_another_writes_is_not(
    writer: str, part: str, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    write = (
        f"from pathlib import Path; from ella_cli.files import {writer}\n"
        f"with {writer}(Path({str(target)!r})) as temporary:\n"
        f"    ({part}).write_text('theirs'); print(temporary, flush=True); input()"
    )
    pipe = subprocess.PIPE

    def begun() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", write], stdin=pipe, stdout=pipe, text=True
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (killed, left), (alive, held) = begun(), begun()
    killed.kill()
    killed.communicate()
    assert left.exists()
    with (new_folder if writer == "new_folder" else replacing)(target) as temporary:
        assert not left.exists()
        assert held.exists()
        (temporary / "mine" if temporary.is_dir() else temporary).write_text("ours")
    alive.communicate("\n")
    assert alive.returncode == 0
    # The last to finish has it.
    written = [target] if target.is_file() else [*target.iterdir()]
    assert [one.read_text() for one in written] == ["theirs"]
    assert {one.name for one in tmp_path.iterdir()} == {"model"}


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    write_text(tmp_path / "own", "1")
    (tmp_path / "own").chmod(0o600)
    write_text(tmp_path / "own", "2")
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    (tmp_path / "plain").touch()
    write_text(tmp_path / "new", "1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_links_in_a_circle_are_a_matter_of_storage(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="lead in a circle"):
        write_text(tmp_path / "loop", "1")
    with pytest.raises(StorageError, match="lead in a circle"):
        check_replaceable(tmp_path / "loop", "sign")
    assert (tmp_path / "loop").is_symlink()
