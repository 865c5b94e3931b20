"""Small task folders, written by hand, in each layout that is understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

WriteFolder = Callable[..., Path]

# The first call of a metric imports its library; that is no law being slow.
settings.register_profile("tasks", deadline=None)
settings.load_profile("tasks")


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
