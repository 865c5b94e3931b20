"""Small task folders, written by hand, in each layout that is understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Writes files by name into a folder; what is not a text is written as JSON or JSONL."""

    def write(name: str, files: Mapping[str, object]) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            if file.endswith(".jsonl") and isinstance(content, list):
                content = "".join(json.dumps(row) + "\n" for row in content)
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    return write
