"""A run that is finished, for tests of what comes after."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli.config import RunSettings
from ella_cli.sequence import (
    run_order,
)


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = RunSettings(
        order="demo-topic,demo-mood,demo-place", model=str(tiny_llama), dtype="float32",
        max_steps=1, limit=8, limit_test=4, decode="rank", curvature_rows=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_order(settings, folder)
    return folder
