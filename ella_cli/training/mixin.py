"""λ · penalty in any transformers Trainer, at exactly its weight.

The penalty depends on parameters, not on data, so it is computed once per optimizer step, on the
micro-batch that ends it. Its weight must not change with accumulation or with devices. Trainer
treats what `compute_loss` returns in one of two ways (transformers 5.24, `training_step`): a loss
it takes for already normalised over the step is used as it is; any other is divided by the number
of micro-batches. T5 is taken for the first kind, for its forward accepts keyword arguments, though
its loss is a plain mean. So the penalty asks the same question as Trainer and undoes the division.
Gradients are averaged over processes, which leaves a term that each of them adds unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object


class EllaTrainerMixin(_Trainer):
    """Put in front of `Trainer`, `Seq2SeqTrainer` or TRL's `SFTTrainer`, then set two attributes.

        class EllaTrainer(EllaTrainerMixin, Trainer): ...

        trainer = EllaTrainer(model=peft_model, ...)
        trainer.penalty = EllaPenalty(peft_model, read_past(path))
        trainer.lam = 1e4

    Attributes:
        penalty: gives a scalar, differentiable in the trained parameters; None for no penalty.
        lam: its weight, >= 0.
        last_loss: the last micro-batch's loss without the penalty.
        last_penalty: the penalty at the last optimizer step, not multiplied by `lam`.
    """

    penalty: Callable[[], Tensor] | None = None
    lam: float = 0.0
    last_loss: Tensor | None = None
    last_penalty: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = result[0] if return_outputs else result
        if not model.training:
            return result
        self.last_loss = loss.detach()
        if self.penalty is None or not self.accelerator.sync_gradients:
            return result
        value = self.penalty()
        self.last_penalty = value.detach()
        if self.lam == 0.0:
            return result
        normalised = self._is_normalised(num_items_in_batch)
        undo = 1 if normalised else self.current_gradient_accumulation_steps
        loss = loss + (value * (self.lam * undo)).to(loss.device)
        return (loss, result[1]) if return_outputs else loss

    def _is_normalised(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether Trainer will use the loss as it is; its own rule, word for word in effect."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None
