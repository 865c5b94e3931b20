"""Small real sweeps: a random model, two built-in tasks, two steps each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.config import RunSettings


@pytest.fixture
def small(tiny_llama: Path) -> Callable[..., RunSettings]:
    """Settings of a run that takes a second; keywords change them."""

    def make(**changes: object) -> RunSettings:
        settings = RunSettings(
            order="demo-topic,demo-mood",
            model=str(tiny_llama),
            device="cpu",
            dtype="float32",
            max_steps=2,
            limit=16,
            validation=8,
            decode="rank",
            learning_rate=0.01,
        )
        return settings.model_copy(update=changes)

    return make
