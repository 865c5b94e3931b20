"""What would fail in a stage, hours later or after something was written for it: found before."""

from __future__ import annotations

from collections.abc import Sequence

from ella_cli.config import DataFields, TrainSettings
from ella_cli.errors import TaskError
from ella_cli.model.base import Base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers
from ella_cli.tasks import Row, Task, build_prompt
from ella_cli.training.measuring import check_measurable
from ella_cli.training.methods import METHODS

# Tokens of text below which a prompt has hardly any.
_LITTLE_ROOM = 32


def check_frames(
    base: Base, tasks: Sequence[Task], settings: DataFields, *, generated: bool
) -> list[str]:
    """Notes on tasks whose prompts leave little room for their text.

    Args:
        generated: whether answers will be, or labels be ranked.

    Raises:
        TaskError: what is always in a task's prompt is longer than the model may read, or a label
            longer than an answer.
    """
    encoder = base.encoder(settings.max_source_length, settings.max_target_length)
    notes = []
    for task in tasks:
        encoder.check_labels(task.spec.name, task.spec.labels, generated=generated)
        frame = build_prompt(task.spec, Row("", ""), header=settings.header)
        try:
            left = encoder.max_source - len(encoder.prompt(frame))
        except TaskError as error:
            raise TaskError(f"{task.spec.name}: {error.message}", hint=error.hint) from error
        if left < _LITTLE_ROOM:
            notes.append(
                f"{task.spec.name}: instruction and options leave {left} of {encoder.max_source} "
                "prompt tokens for the text; see --max-source-length"
            )
    return notes


def check_modules(base: Base, settings: TrainSettings) -> None:
    """Makes sure that LoRA fits what is adapted, before anything is written for it.

    Raises:
        ModelError: as `attach_lora`, or a layer is adapted whose curvature cannot be measured.
    """
    model = attach_lora(base, settings, seed=settings.seed)
    try:
        if METHODS[settings.method].measures(settings.curvature_rows):
            check_measurable(base, lora_layers(model))
    finally:
        detach_lora(model)
