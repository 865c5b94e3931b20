"""A manifest beside an adapter is believed only where its values are of the right kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ella_cli.errors import AdapterError
from ella_cli.manifest import read_manifest

SOUND: dict[str, Any] = {
    "format": 1,
    "task": "amazon",
    "lambda": 10,
    "base": {"model": "smollm2", "fingerprint": None},
    "past": {"digest": None, "tasks": ["dbpedia"]},
    "seconds": 3,
    "of a later version": [1],
}


def _written(folder: Path, document: Any) -> Path:
    (folder / "ella.json").write_text(json.dumps(document))
    return folder


def test_a_sound_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(_written(tmp_path, SOUND)) == SOUND


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "of format 1"),
        ({"base": "smollm2"}, "base: "),
        ({"lambda": "auto"}, "lambda: "),
        ({"lambda": float("nan")}, "lambda: "),
        ({"order_index": None}, "order_index: "),
        ({"data": "rows"}, "data: "),
        ({"past": {"tasks": "dbpedia"}}, "past.tasks: "),
        ({"update_norms": {"q": "1"}}, "update_norms.q: "),
    ],
)
def test_what_is_of_the_wrong_kind_is_named(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(AdapterError, match=named):
        read_manifest(_written(tmp_path, SOUND | change))


def test_no_object_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a manifest of format 1"):
        read_manifest(_written(tmp_path, [1]))
