"""What would fail in a stage, or be learned amiss: found before anything is trained for it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ella_cli.config import DataFields, TrainSettings
from ella_cli.errors import TaskError
from ella_cli.model.base import Base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers
from ella_cli.progress import Progress
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


def tell_cuts(
    base: Base,
    task: Task,
    encoded: Sequence[Mapping[str, list[int]]],
    settings: DataFields,
    progress: Progress,
) -> None:
    """Says how many train answers are longer than they may be, and how many prompts fill theirs.

    A cut answer is learned with an end where there is none, so of that it warns.

    Args:
        encoded: the task's train rows as `Encoder.example` gives them, in order.
    """
    encoder = base.encoder(settings.max_source_length, settings.max_target_length)
    whole = replace(encoder, max_target=sys.maxsize)
    filled, answers = 0, []
    for row, ids in zip(task.train, encoded, strict=True):
        target = len(ids["labels"])
        source = len(ids["input_ids"]) - (target if base.kind == "decoder" else 0)
        filled += source == encoder.max_source
        # Only what fills its room can have been cut.
        if target == encoder.max_target:
            answers.append(len(whole.answer(row.answer)))
    cut = [length for length in answers if length > encoder.max_target]
    if cut:
        progress.warn(
            f"{task.spec.name}: {len(cut)} of {len(encoded)} answers are learned cut to "
            f"{encoder.max_target} tokens; --max-target-length {max(cut)} takes them whole"
        )
    if filled:
        # To read them whole only to count them would take as long again.
        progress.note(
            f"{task.spec.name}: {filled} of {len(encoded)} prompts fill their "
            f"{encoder.max_source} tokens, texts cut where they are longer; see "
            "--max-source-length"
        )


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
