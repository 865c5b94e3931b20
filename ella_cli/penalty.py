"""The method in one place: Σ over modules of ‖ΔW ⊙ W_past‖²_F, for a PEFT model and its past.

    loss of a task = CE + λ · EllaPenalty(model, past)()

Strongly used coordinates of W_past are protected, little used ones stay free. Everything that
knows tensors is in `kernels`; everything that knows training is in `training`.

Source: ELLA, arXiv 2601.02232, Eq. 5; the algebra is in docs/method.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ella_cli.errors import PastError
from ella_cli.kernels import Factors, plan_penalty
from ella_cli.model.lora import lora_layers, lora_pair
from ella_cli.past import Past


class EllaPenalty:
    """Binds the LoRA pairs of a PEFT model to a past; calling it gives the penalty now.

    Args:
        model: a PEFT model with one active LoRA adapter.
        past: must know every adapted module.
        form: how it is computed; `auto` lets the cost model choose.
        share: (rank, count) computes every count-th module and multiplies by count: the mean of
            all ranks' gradients is then the whole penalty's, at 1 / count of the work and with
            W_past sharded.

    Raises:
        PastError: the past lacks an adapted module.
        ShapeError: a module's ΔW and its W_past do not have the same shape.
    """

    def __init__(
        self, model: nn.Module, past: Past, *, form: str = "auto", share: tuple[int, int] = (0, 1)
    ) -> None:
        rank, self._count = share
        layers = lora_layers(model)
        missing = [name for name in layers if name not in past.names]
        if missing:
            raise PastError(
                f"the past lacks {len(missing)} of {len(layers)} adapted modules, "
                f"first {missing[0]}",
                hint="adapt the modules the past was made on (--target-modules), or start anew",
            )
        self.names = tuple(layers)[rank :: self._count]
        pairs = [lora_pair(layers[name]) for name in self.names]
        self._bs = [b for b, _, _ in pairs]
        self._as = [a for _, a, _ in pairs]
        self._plan = plan_penalty(
            [_on(past.operand(name), b) for name, b in zip(self.names, self._bs, strict=True)],
            [scale for _, _, scale in pairs],
            rank=self._as[0].shape[0] if pairs else 1,
            form=form,
            names=self.names,
        )

    def __call__(self) -> Tensor:
        """Scalar f32, differentiable in every B and A; not multiplied by λ."""
        total, _ = self._plan(self._bs, self._as)
        return total * self._count

    def values(self) -> dict[str, float]:
        """The penalty of each module of this share, by name."""
        with torch.no_grad():
            _, values = self._plan(self._bs, self._as)
        return dict(zip(self.names, values.tolist(), strict=True))


def _on(operand: Tensor | Factors, like: Tensor) -> Tensor | Factors:
    if isinstance(operand, Factors):
        return Factors(operand.p.to(like.device), operand.q.to(like.device))
    return operand.to(like.device)
