"""The training loop of one task: transformers' Trainer with the answers' cross-entropy.

Cross-entropy is the mean over all answer tokens of an optimizer step, for decoders and
encoder-decoders alike, whatever the number of micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.generic import ModelOutput

from ella_cli.config import TrainSettings
from ella_cli.errors import NonFiniteError, SettingsError
from ella_cli.model.attention import short_attention
from ella_cli.model.base import Base
from ella_cli.model.lora import update_norms
from ella_cli.tasks.batches import IGNORED
from ella_cli.training.basis import PastBasis
from ella_cli.training.checkpoints import whole_checkpoint
from ella_cli.training.mixin import EllaTrainerMixin
from ella_cli.training.row_order import RowOrder
from ella_cli.training.strength import Strength


class TaskTrainer(EllaTrainerMixin, Trainer):
    """A Trainer that stops at the first loss that is not finite, before anything learns from it.

    Attributes:
        step_ce: cross-entropy of the step under way, nats per answer token.
        good: the trained weights at the last step whose loss was finite.
        strength: its λ, and how it was found.
        basis: the coordinates that the optimizer steps in; None for the weights' own.
        saves_the_end: whether the last step leaves a checkpoint, whatever `save_steps` says.
    """

    step_ce: float = 0.0
    good: dict[str, Tensor]
    strength: Strength
    basis: PastBasis | None = None
    saves_the_end: bool = False
    _failed: NonFiniteError | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        # Trainer has counted them; the model would pass them on to every layer.
        inputs.pop("shift_labels", None)
        with short_attention(inputs["input_ids"]):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        assert self.last_loss is not None
        self.step_ce += self.last_loss.item()
        if not self._finite_everywhere(loss):
            if self._failed is not None:
                raise self._failed
            if math.isfinite(loss.item()):
                raise NonFiniteError(
                    f"the loss or the penalty of another process is no number at step "
                    f"{self.state.global_step + 1}",
                    hint="lower --learning-rate or --lambda, or use --dtype float32",
                )
            raise NonFiniteError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} "
                f"(cross-entropy {self.step_ce:.4g})",
                hint="lower --learning-rate or --lambda, or use --dtype float32",
            )
        if self.accelerator.sync_gradients:
            # `model` may be wrapped, and its parameters have other names then.
            assert isinstance(self.model, nn.Module)
            self.good = trained_weights(self.model)
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        made = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.basis is not None and made:
            self.basis.attach(optimizer)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        if args.train_sampling_strategy not in ("group_by_length", "random"):
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        # The last row is of no answer, and no row of the task.
        lengths = [len(row["input_ids"]) for row in rows][:-1]
        return RowOrder(
            lengths,
            args.seed,
            lambda: int(self.state.epoch or 0),
            group=step if args.train_sampling_strategy == "group_by_length" else None,
            # Alone, a process may take fewer at the end.
            at_once=args.train_batch_size * args.world_size if args.world_size > 1 else 1,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Weights that have met no loss yet: nothing is to go on from such as are no numbers.
        check_weights(model, self.state.global_step)
        name = f"checkpoint-{self.state.global_step}"
        folder = Path(str(self.args.output_dir)) / name
        wait = self.accelerator.wait_for_everyone
        with whole_checkpoint(folder, wait, main=self.is_world_process_zero()):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Left to itself, PEFT asks the hub whether the base's vocabulary has grown.
        peft: Any = self.model
        peft.save_pretrained = partial(peft.save_pretrained, save_embedding_layers=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del peft.save_pretrained

    def meeting(self, penalty: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The penalty, which says NaN where it would raise in one process of several.

        The others are on their way into the sum of the gradients by then, and would wait there:
        all of them stop after it.
        """

        def value() -> Tensor:
            try:
                return penalty()
            except NonFiniteError as error:
                if self.args.world_size == 1:
                    raise
                self._failed = error
                return torch.full((), math.nan, device=self.args.device)

        return value

    def take_finished(self, checkpoint: Path) -> bool:
        """Weights and curves of a training that took all its steps; False if any are left."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def _finite_everywhere(self, loss: Tensor) -> bool:
        """Whether the loss is a number in every process: they stop together."""
        if self.args.world_size == 1:
            return math.isfinite(loss.item())
        count: Tensor = self.accelerator.reduce(torch.isfinite(loss.detach()).float(), "sum")
        return count.item() == float(self.args.world_size)

    def planned_steps(self) -> int:
        """Optimizer steps a whole training will take."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = len(self.get_train_dataloader())
        per_epoch = max(1, math.ceil(batches / self.args.gradient_accumulation_steps))
        return math.ceil(per_epoch * self.args.num_train_epochs)

    def point(self, update_norm: float) -> dict[str, float]:
        """What the curves get for the step just taken, as the mean of all processes' shares."""
        penalty = 0.0 if self.last_penalty is None else self.last_penalty.item()
        ce = self.step_ce
        if self.args.world_size > 1:
            shares = torch.tensor([ce, penalty], device=self.args.device)  # (2,)
            ce, penalty = self.accelerator.reduce(shares, "mean").tolist()
        return {"ce": ce, "penalty": penalty, "update_norm": update_norm}


def build_trainer(
    base: Base,
    model: nn.Module,
    rows: Sequence[dict[str, list[int]]],
    settings: TrainSettings,
    *,
    seed: int,
    checkpoints: Path,
    tasks: int = 1,
) -> TaskTrainer:
    """A TaskTrainer over encoded rows; penalty and λ are for the caller to set.

    Args:
        base: the model that `model` adapts.
        model: a PEFT model on `base`.
        rows: what `Encoder.example` gives.
        settings: optimizer, batch and length settings.
        seed: of data order and dropout.
        checkpoints: where checkpoints go, if settings ask for them.
        tasks: how many tasks the rows are of; each has its `max_steps`.
    """
    scheduler: str = settings.lr_scheduler_type
    if scheduler == "constant" and settings.warmup_steps:
        # Which is one of its own to transformers; its constant passes over the warm-up.
        scheduler = "constant_with_warmup"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps * tasks if settings.max_steps else -1,
        train_sampling_strategy="group_by_length" if settings.group_by_length else "random",
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        # The older one is gone on from if a kill cuts the newer one off.
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        seed=seed,
    )
    if arguments.n_gpu > 1:
        # One process computes on one device; Trainer would share out a batch n times as large.
        arguments._n_gpu = 1
    elsewhere = base.device.type == "cuda" and arguments.device != base.device
    if elsewhere and arguments.world_size == 1:
        # Alone, a process is given the first GPU whichever the model lies on.
        torch.cuda.set_device(base.device)
        vars(arguments)["_setup_devices"] = base.device
    trainer = TaskTrainer(
        model=model,
        args=arguments,
        train_dataset=[*rows, _no_answer(base)],
        data_collator=base.collator(),
        compute_loss_func=answer_cross_entropy,
        optimizer_cls_and_kwargs=_muon(model, settings) if settings.optim == "muon" else None,
    )
    # Without its own bar, Trainer prints every log line to stdout, where results belong.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _no_answer(base: Base) -> dict[str, list[int]]:
    """A row, as `Encoder.example` gives them, that teaches nothing."""
    end = base.tokenizer.eos_token_id
    assert isinstance(end, int)
    return {"input_ids": [end, end], "labels": [IGNORED]}


def _muon(model: nn.Module, settings: TrainSettings) -> tuple[type[Muon], dict[str, Any]]:
    """Muon with AdamW's step size: each update has the root mean square that AdamW's would have.

    Raises:
        SettingsError: something is trained that is no matrix.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 (arXiv 2502.16982) for the step size.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim != 2:
            raise SettingsError(
                f"Muon orthogonalises matrices, and {name} has {parameter.ndim} dimensions",
                hint="give --optim adamw, or --target-modules of linear layers only",
            )
    return Muon, {"lr": settings.learning_rate, "adjust_lr_fn": "match_rms_adamw"}


def answer_cross_entropy(
    outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy summed over answer tokens and divided by the step's number of them.

    Returns:
        A `compute_loss_func` for Trainer: logits (..., V) in outputs and labels (...) -> f32.
    """
    logits = outputs["logits"].float().flatten(0, -2)  # (answer tokens or S · L, V)
    total = nn.functional.cross_entropy(
        logits, labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum()
    return total / count


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what is trained, by parameter name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def check_weights(model: nn.Module, step: int) -> None:
    """
    Args:
        step: the last one taken.

    Raises:
        NonFiniteError: a trained weight is NaN or infinite, or the product of two is beyond f32.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(parameter.isfinite().all()):
            raise NonFiniteError(
                f"{name} is NaN or infinite after step {step}",
                hint="lower --learning-rate",
            )
    # A loss can stay a number all the way: softmax of huge scores does.
    for name, norm in update_norms(model).items():
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"the update of {name} is too large for f32 after step {step}",
                hint="lower --learning-rate",
            )


def restore_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts a copy made by `trained_weights` back."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
