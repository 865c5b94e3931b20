"""What a stage is asked to learn, on top of what; and what its manifest then says of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ella_cli.adapter import Adapter
from ella_cli.config import DataFields, TrainSettings
from ella_cli.manifest import FORMAT
from ella_cli.model.base import Base
from ella_cli.model.lora import lora_layers, update_norms
from ella_cli.past import Past
from ella_cli.tasks import Task
from ella_cli.training.manifest import curves, versions
from ella_cli.training.strength import given_strength
from ella_cli.training.trainer import TaskTrainer


@dataclass(frozen=True)
class Assignment:
    """One stage of a sequence, ready to be trained.

    Attributes:
        name: the task's name; of a joint stage, of all of them.
        tasks: one task, or all of them for a joint stage.
        order_index: 0-based place in the sequence.
        past: the sum of the earlier updates; folded into the weights if the method sums.
        earlier: the earlier adapters, in order.
        replayed: past tasks with those of their rows that are learned again; measured they are not.
    """

    name: str
    tasks: Sequence[Task]
    order_index: int = 0
    past: Past | None = None
    earlier: Sequence[Adapter] = ()
    replayed: Sequence[Task] = ()


def stage_seed(settings: DataFields, order_index: int) -> int:
    """One seed a stage: with the same one, every task's A would start as the same matrix.

    Within the 32 bits that numpy's generators take.
    """
    return (settings.seed * 1000 + order_index) % 2**32


def stage_manifest(
    base: Base, trainer: TaskTrainer, assignment: Assignment, settings: TrainSettings
) -> dict[str, Any]:
    """`ella.json` of a stage whose training is done (docs/file-formats.md), without its seconds."""
    model: Any = trainer.model
    past, args = assignment.past, trainer.args
    norms = update_norms(model)
    layer = next(iter(lora_layers(model).values()))
    (scale,) = set(layer.scaling.values())
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    lam = trainer.lam if trainer.penalty is not None else 0.0
    return {
        "format": FORMAT,
        "task": assignment.name,
        "order_index": assignment.order_index,
        "method": settings.method,
        "lambda": trainer.lam,
        "strength": trainer.strength.facts(),
        "energy": energy_in_force(assignment, settings),
        "optim": optim_in_force(assignment, settings),
        "seed": settings.seed,
        "rank": settings.lora_rank,
        "scale": scale,
        "dropout": settings.lora_dropout,
        "kind": base.kind,
        "base": {"model": base.source, "fingerprint": base.fingerprint},
        "data": {
            "fingerprint": _data_fingerprint(assignment.tasks),
            "train_rows": sum(len(task.train) for task in assignment.tasks),
            "origin": [task.origin for task in assignment.tasks],
            "replayed": {task.spec.name: len(task.train) for task in assignment.replayed},
        },
        "past": {
            "digest": past.digest if past else None,
            "tasks": [task.name for task in past.tasks] if past else [],
        },
        "update_norm": math.hypot(*norms.values()),
        "update_norms": norms,
        "steps": trainer.state.global_step,
        "curves": curves(trainer.state.log_history, lam),
        "batch": {
            "per_device": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "processes": args.world_size,
            "global": per_step * args.world_size,
        },
        "settings": settings.model_dump(mode="json", by_alias=True),
        "versions": versions(),
    }


def energy_in_force(assignment: Assignment, settings: TrainSettings) -> str | None:
    """What the penalty protects; None for methods that have no choice of it, and a first task."""
    if settings.method != "ella" or assignment.past is None or not assignment.past.tasks:
        return None
    return settings.energy or assignment.past.energy


def optim_in_force(assignment: Assignment, settings: TrainSettings) -> str:
    """The optimizer that steps: `adamw` for `adamw-past` where no curvature is protected.

    With λ = 0 nothing is, and a task is trained as by inclora.
    """
    given = given_strength(settings, assignment.order_index)
    weighs = given is None or given.lam != 0
    protects = weighs and energy_in_force(assignment, settings) == "curvature"
    return settings.optim if protects or settings.optim == "muon" else "adamw"


def _data_fingerprint(tasks: Sequence[Task]) -> str:
    if len(tasks) == 1:
        return tasks[0].fingerprint
    return hashlib.sha256("".join(task.fingerprint for task in tasks).encode()).hexdigest()
