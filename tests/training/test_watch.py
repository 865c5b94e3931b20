"""What a training says while it runs: the live words, and a warning when the penalty fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ella_cli.adapter import read_adapter
from ella_cli.config import TrainSettings
from ella_cli.model.base import Base, load_base
from ella_cli.past import Past
from ella_cli.progress import Advance
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment
from ella_cli.training.task import train_task


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.warnings: list[str] = []

    def begin(self, what: str, total: int) -> Advance:
        return lambda done, words: self.words.append(words)

    def note(self, words: str) -> None:
        self.words.append(words)

    def warn(self, words: str) -> None:
        self.warnings.append(words)


@pytest.fixture(scope="module")
def ground(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Past]:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    folder = tmp_path_factory.mktemp("first") / "a1"
    settings = TrainSettings(max_steps=4, learning_rate=0.01, curvature_rows=0)
    train_task(
        base, Assignment("demo-topic", [load_task("demo-topic", limit=32)]), settings, folder
    )
    return base, Past.of([read_adapter(folder)])


def _second(ground: tuple[Base, Past], folder: Path, lam: Any, **more: Any) -> Listener:
    base, past = ground
    values = {"max_steps": 8, "learning_rate": 0.01, "curvature_rows": 0, "lambda": lam} | more
    listener = Listener()
    task = load_task("demo-mood", limit=32)
    assignment = Assignment("demo-mood", [task], 1, past)
    train_task(base, assignment, TrainSettings.model_validate(values), folder, progress=listener)
    return listener


def test_it_tells_loss_penalty_ratio_and_size(ground: tuple[Base, Past], tmp_path: Path) -> None:
    listener = _second(ground, tmp_path / "a2", "auto")
    assert any(words.startswith("demo-mood: λ = ") and "auto" in words for words in listener.words)
    last = listener.words[-1]
    past_norm = ground[1].tasks[0].update_norm
    assert last.startswith("loss ")
    assert "penalty" in last
    assert "%)" in last
    assert last.endswith(f"of {past_norm:.2f}")
    assert not listener.warnings


def test_a_penalty_without_effect_is_warned_of_once(
    ground: tuple[Base, Past], tmp_path: Path
) -> None:
    listener = _second(ground, tmp_path / "a2", 1e-6)
    (warning,) = listener.warnings
    assert warning.startswith("the penalty was idle on demo-mood")
    assert "raise --rho or --lambda" in warning


def test_a_short_training_is_judged_at_its_end(ground: tuple[Base, Past], tmp_path: Path) -> None:
    # B = 0 at the first step of three: so far no penalty could have had an effect.
    assert not _second(ground, tmp_path / "a2", "auto", max_steps=3).warnings


def test_a_collapse_says_what_to_change(ground: tuple[Base, Past], tmp_path: Path) -> None:
    # Nothing is learned, and next to nothing moves.
    listener = _second(ground, tmp_path / "a2", "auto", learning_rate=1e-7)
    assert any("demo-mood collapsed" in words for words in listener.warnings)
    assert any("lower --rho or --lambda" in words for words in listener.warnings)


def test_lambda_zero_warns_of_nothing(ground: tuple[Base, Past], tmp_path: Path) -> None:
    assert _second(ground, tmp_path / "a2", 0).warnings == []
