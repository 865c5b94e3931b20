"""One task: rows in, a stock PEFT adapter with its manifest out, whole or not at all."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ella_cli import files, processes
from ella_cli.config import FREE, CurvatureFields, DataFields, TrainSettings
from ella_cli.curvature import Measured
from ella_cli.errors import NonFiniteError
from ella_cli.manifest import MANIFEST
from ella_cli.model.base import Base
from ella_cli.model.fold import Fold
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers
from ella_cli.penalty import CurvaturePenalty
from ella_cli.progress import SILENCE, Progress
from ella_cli.tasks import Task, build_prompt
from ella_cli.training.assignment import (
    Assignment,
    energy_in_force,
    optim_in_force,
    stage_manifest,
    stage_seed,
)
from ella_cli.training.basis import PastBasis
from ella_cli.training.card import model_card
from ella_cli.training.carried import carried_lora
from ella_cli.training.checkpoints import clear_cut_off, last_checkpoint
from ella_cli.training.checks import tell_cuts
from ella_cli.training.measuring import (
    check_measurable,
    measure_task,
    note_little,
    write_measured,
)
from ella_cli.training.methods import METHODS, Method, Situation
from ella_cli.training.strength import Strength, found_strength, given_strength
from ella_cli.training.trainer import (
    TaskTrainer,
    build_trainer,
    check_weights,
    restore_weights,
)
from ella_cli.training.watch import StepWatch

if TYPE_CHECKING:
    from peft import PeftModel


def train_task(
    base: Base,
    assignment: Assignment,
    settings: TrainSettings,
    folder: Path,
    *,
    progress: Progress = SILENCE,
) -> dict[str, Any]:
    """Trains one stage and writes its adapter to `folder`; returns the manifest.

    Args:
        base: the loaded base; its weights are as before when this returns.
        assignment: what to learn, and on top of what.
        settings: method, λ, LoRA, optimizer and data settings.
        folder: becomes the adapter folder at the very end; one that is there is replaced.
        progress: is told of every step.

    Raises:
        NonFiniteError: the loss or the penalty stopped being a number; the last good adapter is
            beside `folder`, as its name with `.last-good`.
        ModelError: a layer is adapted whose curvature cannot be measured.
        PastError, ShapeError: the past does not fit the model.
        TaskError: a prompt's frame alone is longer than the model may read.
        StorageError: `folder` holds other things or cannot be written, or the disk is full.
    """
    started = time.monotonic()
    check_output(folder)
    method = METHODS[settings.method]
    rows = []
    for task in assignment.tasks:
        encoded = encode_rows(base, [task], settings)
        tell_cuts(base, task, encoded, settings, progress)
        rows += encoded
    past = assignment.past if method.summed else None
    with Fold(base.model) as fold:
        if past is not None:
            fold.set(past.names, past.delta)
        model = _with_lora(base, assignment, settings, method)
        checkpoints = _checkpoint_folder(base, assignment, settings, folder)
        try:
            mixed = [*rows, *encode_rows(base, assignment.replayed, settings)]
            trainer = _trainer(base, model, mixed, assignment, settings, checkpoints, progress)
            _note_unprotected(assignment, settings, progress)
            measures = method.measures(settings.curvature_rows)
            if measures:
                # Measuring can fail where training did not: a last checkpoint comes before it.
                check_measurable(base, lora_layers(model))
                trainer.saves_the_end = True
            _run(trainer, assignment, settings, folder, progress)
            manifest = stage_manifest(base, trainer, assignment, settings)
            if trainer.is_world_process_zero():
                measured = None
                if measures:
                    measured, manifest["curvature"] = measure_task(
                        base,
                        model,
                        rows,
                        count=settings.curvature_rows,
                        batch_size=settings.per_device_train_batch_size,
                        rank=settings.energy_rank,
                        seed=stage_seed(settings, assignment.order_index),
                        importance=settings.importance,
                        name=assignment.name,
                        progress=progress,
                    )
                    protects = settings.method == "ella" and settings.energy in (None, "curvature")
                    if protects and settings.importance == "auto":
                        note_little(assignment.name, manifest["curvature"], progress)
                manifest["seconds"] = round(time.monotonic() - started, 2)
                _write(model, manifest, measured, settings, folder)
                # Those of other settings too: what they led to is replaced.
                for left in folder.parent.glob(f".{glob.escape(folder.name)}.checkpoints-*"):
                    shutil.rmtree(left, ignore_errors=True)
            processes.wait()
            if not processes.is_main():
                manifest = files.read_json(folder / MANIFEST)
        finally:
            detach_lora(model)
            # Trainer makes the folder whether or not anything is ever saved there.
            if processes.is_main() and checkpoints.is_dir() and not any(checkpoints.iterdir()):
                checkpoints.rmdir()
    return manifest


def check_output(folder: Path) -> None:
    """
    Raises:
        StorageError: an adapter cannot be written to `folder`, or would replace other things.
    """
    files.check_replaceable(folder, "adapter_config.json")


def _note_unprotected(assignment: Assignment, settings: TrainSettings, progress: Progress) -> None:
    past = assignment.past
    if past and past.unmeasured and energy_in_force(assignment, settings) == "curvature":
        progress.note(
            f"{', '.join(past.unmeasured)}: not protected, for the past has no curvature of it; "
            "`ella measure ADAPTER --task NAME` makes one, then accumulate the adapter again"
        )


def encode_rows(
    base: Base, tasks: Sequence[Task], settings: DataFields
) -> list[dict[str, list[int]]]:
    """The train rows of `tasks` as token ids, in order."""
    encoder = base.encoder(settings.max_source_length, settings.max_target_length)
    for task in tasks:
        encoder.check_labels(task.spec.name, task.spec.labels, generated=False)
    return [
        encoder.example(build_prompt(task.spec, row, header=settings.header), row.answer)
        for task in tasks
        for row in task.train
    ]


def _with_lora(
    base: Base, assignment: Assignment, settings: TrainSettings, method: Method
) -> PeftModel:
    seed = stage_seed(settings, assignment.order_index)
    if method.carried and assignment.earlier:
        return carried_lora(base, settings, assignment.earlier[-1], seed=seed)
    return attach_lora(base, settings, seed=seed)


def _trainer(
    base: Base,
    model: PeftModel,
    rows: Sequence[dict[str, list[int]]],
    assignment: Assignment,
    settings: TrainSettings,
    checkpoints: Path,
    progress: Progress,
) -> TaskTrainer:
    seed = stage_seed(settings, assignment.order_index)
    trainer = build_trainer(
        base,
        model,
        rows,
        settings,
        seed=seed,
        checkpoints=checkpoints,
        tasks=len(assignment.tasks),
    )
    method = METHODS[settings.method]
    given = given_strength(settings, assignment.order_index)
    trainer.strength = given or Strength(0.0)
    if method.penalty is not None:
        situation = Situation(
            model=model,
            past=assignment.past,
            earlier=assignment.earlier,
            energy=settings.energy,
            olora_l2=settings.olora_l2,
            lam=trainer.strength.lam,
            share=(trainer.args.process_index, trainer.args.world_size),
        )
        trainer.penalty = method.penalty(situation)
    if given is None and trainer.penalty is not None and assignment.past is not None:
        trainer.strength = found_strength(
            base,
            assignment.past,
            rows,
            curvature=isinstance(trainer.penalty, CurvaturePenalty),
            names=tuple(lora_layers(model)),
            rho=settings.rho,
        )
        progress.note(f"{assignment.name}: {trainer.strength}")
    if assignment.past is not None and optim_in_force(assignment, settings) == "adamw-past":
        trainer.basis = PastBasis(model, assignment.past)
    if trainer.penalty is None:
        # Nothing to weigh: a first task is the same whatever λ was asked for.
        trainer.strength = Strength(0.0)
    else:
        trainer.penalty = trainer.meeting(trainer.penalty)
    trainer.lam = trainer.strength.lam
    return trainer


def _checkpoint_folder(
    base: Base, assignment: Assignment, settings: TrainSettings, folder: Path
) -> Path:
    """Its name says what a checkpoint belongs to, so that other settings never go on from it."""
    # Not how a run is scored: that may be another when it is gone on with.
    decide = TrainSettings.model_fields.keys() - CurvatureFields.model_fields.keys()
    # Nor how the weights' precision was asked for, but what it is.
    decide -= FREE | {"dtype"}
    decided = settings.model_dump(mode="json", include=decide)
    decided["optim"] = optim_in_force(assignment, settings)
    facts = [
        base.fingerprint,
        base.tokenizer_digest,
        base.precision,
        [(one.fingerprint, one.spec.digest) for one in (*assignment.tasks, *assignment.replayed)],
        assignment.past.digest if assignment.past else None,
        [one.digest for one in assignment.earlier],
        assignment.order_index,
        decided,
        processes.count(),
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return folder.parent / f".{folder.name}.checkpoints-{key}"


def _run(
    trainer: TaskTrainer,
    assignment: Assignment,
    settings: TrainSettings,
    folder: Path,
    progress: Progress,
) -> None:
    model: Any = trainer.model
    output = Path(str(trainer.args.output_dir))
    checkpoint = last_checkpoint(output)
    if processes.is_main():
        clear_cut_off(output)
    steps = trainer.planned_steps()
    advance = progress.begin(f"train {assignment.name}", steps)
    trainer.add_callback(
        StepWatch(
            trainer,
            advance,
            progress.warn,
            assignment.name,
            [task.update_norm for task in assignment.past.tasks] if assignment.past else [],
        )
    )
    if checkpoint:
        progress.note(f"going on from {checkpoint.name} of {assignment.name}")
    if checkpoint and trainer.take_finished(checkpoint):
        advance(steps, "")
        # The main process may soon be done with it, and take it away.
        processes.wait()
        return
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        # The last step's weights have met no loss that would tell.
        check_weights(model, trainer.state.global_step)
    except NonFiniteError as error:
        if not hasattr(trainer, "good"):
            raise
        restore_weights(model, trainer.good)
        kept = folder.with_name(f"{folder.name}.last-good")
        if processes.is_main():
            with files.new_folder(kept) as temporary:
                model.save_pretrained(temporary, save_embedding_layers=False)
        processes.wait()
        raise NonFiniteError(
            f"{error.message}; the last good adapter is in {kept}", hint=error.hint
        ) from error


def _write(
    model: PeftModel,
    manifest: dict[str, Any],
    measured: Measured | None,
    settings: TrainSettings,
    folder: Path,
) -> None:
    with files.new_folder(folder) as temporary:
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        if measured is not None:
            seed = stage_seed(settings, manifest["order_index"])
            record = write_measured(temporary, measured, manifest, seed=seed)
            manifest["curvature"]["measured"] = record.digest
        files.write_json(temporary / MANIFEST, manifest)
        files.write_text(temporary / "README.md", model_card(manifest, settings))
