"""What is seen of a training while it runs: curves, a line of progress, signs of trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ella_cli.model.lora import update_norms
from ella_cli.progress import Advance
from ella_cli.training.manifest import curves
from ella_cli.training.signs import Course
from ella_cli.training.trainer import TaskTrainer

# A curve has at most about this many points, so that long trainings stay readable and small.
_CURVE_POINTS = 200
# Of fewer nothing is said before the end.
_FEWEST_STEPS = 10


class StepWatch(TrainerCallback):
    """Follows the steps: curve points into the trainer's log, a word to whoever shows progress.

    Args:
        trainer: whose steps.
        advance: told of every step: CE, λ · penalty and their ratio, ‖ΔW‖ against the past's.
        warn: told once of each sign that the penalty does too much or nothing.
        task: its name.
        past_norms: ‖ΔW‖_F of the past tasks, oldest first.
    """

    def __init__(
        self,
        trainer: TaskTrainer,
        advance: Advance,
        warn: Callable[[str], None],
        task: str,
        past_norms: Sequence[float],
    ) -> None:
        self._trainer = trainer
        self._advance = advance
        self._warn = warn
        self._task = task
        self._usual = sorted(past_norms)[len(past_norms) // 2] if past_norms else 0.0
        self._warned: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step:
            # Steps that a checkpoint has behind it.
            self._advance(state.global_step, "")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        trainer = self._trainer
        every = max(1, state.max_steps // _CURVE_POINTS)
        kept = state.global_step % every == 0 or state.global_step == state.max_steps
        norm = math.nan
        if kept or trainer.last_penalty is not None:
            assert isinstance(trainer.model, nn.Module)
            norm = math.hypot(*update_norms(trainer.model).values())
        if kept:
            trainer.log(trainer.point(norm))
        self._advance(1, self._words(norm))
        trainer.step_ce = 0.0
        # In its middle a short training has not shown yet what the penalty will do: B = 0 at first.
        half = max(state.max_steps // 2, _FEWEST_STEPS)
        if state.global_step in (half, state.max_steps):
            self._warn_of_signs()
        if state.global_step == state.max_steps and trainer.saves_the_end:
            control.should_save = True

    def _words(self, norm: float) -> str:
        trainer = self._trainer
        words = f"loss {trainer.step_ce:.3f}"
        if trainer.penalty is None or trainer.last_penalty is None:
            return words
        weighted = trainer.lam * trainer.last_penalty.item()
        share = f" ({weighted / trainer.step_ce:.0%})" if trainer.step_ce else ""
        return f"{words} + penalty {weighted:.3f}{share}  ‖ΔW‖ {norm:.2f} of {self._usual:.2f}"

    def _warn_of_signs(self) -> None:
        trainer = self._trainer
        curve = curves(trainer.state.log_history, trainer.lam)
        course = Course(
            self._task,
            curve["ce"],
            curve["weighted_penalty"],
            curve["update_norm"],
            trainer.lam,
            self._usual,
            protects=trainer.penalty is not None,
        )
        for sign in course.signs():
            if sign.kind not in self._warned:
                self._warned.add(sign.kind)
                self._warn(sign.text)
