"""The method in one place: what is added to the loss of a new task, for a PEFT model and its past.

    loss of a task = CE + λ · penalty(model, past)()

`EllaPenalty` is the paper's: Σ over modules of ‖ΔW ⊙ W_past‖²_F, so that strongly used coordinates
of W_past are protected and little used ones stay free. `CurvaturePenalty` asks instead how much
the past tasks' losses rise, each task's times its importance: ½ tr(ΔWᵀ G ΔW C) of every module and
task, and ½ ‖s‖² of every task, s how far all modules together move its answers along its
directions. Everything that knows tensors is in `kernels`; everything that knows training is in
`training`.

Source: ELLA, arXiv 2601.02232, Eq. 5; the algebra of both is in docs/method.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ella_cli import processes
from ella_cli.errors import PastError
from ella_cli.kernels import (
    CurvaturePlan,
    Factors,
    Others,
    PenaltyPlan,
    plan_curvature,
    plan_penalty,
)
from ella_cli.model.lora import lora_layers, lora_pair
from ella_cli.past import Past


class Penalty(ABC):
    """Binds the LoRA pairs of a PEFT model to a past; calling it gives the penalty now.

    Args:
        model: a PEFT model with one active LoRA adapter.
        past: must know every adapted module.
        share: (rank, count) computes every count-th module and multiplies by count: the mean of
            all ranks' gradients is then the whole penalty's, at 1 / count of the work and with
            the past sharded.

    Raises:
        PastError: the past lacks an adapted module.
        ShapeError: a module's ΔW and its past do not have the same shape.
    """

    def __init__(self, model: nn.Module, past: Past, *, share: tuple[int, int] = (0, 1)) -> None:
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
        self._device = next(model.parameters()).device
        pairs = [lora_pair(layers[name]) for name in self.names]
        self._bs = [b for b, _, _ in pairs]
        self._as = [a for _, a, _ in pairs]
        self._plan = self._prepare(past, [scale for _, _, scale in pairs])

    @abstractmethod
    def _prepare(self, past: Past, scales: list[float]) -> PenaltyPlan | CurvaturePlan:
        """What the task keeps constant."""

    def __call__(self) -> Tensor:
        """Scalar f32, differentiable in every B and A; not multiplied by λ."""
        total, _ = self._plan(self._bs, self._as)
        return total * self._count


class EllaPenalty(Penalty):
    """Σ ‖ΔW ⊙ E‖²_F with the energy E per coordinate, as the past has it; as `Penalty`.

    Args:
        form: how it is computed; `auto` lets the cost model choose.
    """

    def __init__(
        self, model: nn.Module, past: Past, *, form: str = "auto", share: tuple[int, int] = (0, 1)
    ) -> None:
        self._form = form
        super().__init__(model, past, share=share)

    def _prepare(self, past: Past, scales: list[float]) -> PenaltyPlan:
        return plan_penalty(
            [
                _on(past.operand(name), b.device)
                for name, b in zip(self.names, self._bs, strict=True)
            ],
            scales,
            rank=[a.shape[0] for a in self._as],
            form=self._form,
            names=self.names,
        )


class CurvaturePenalty(Penalty):
    """Σ over past tasks of importance times the expected rise of loss, nats per answer token.

    Raises:
        PastError: no task of the past that counts for its energy has measured its curvature.
    """

    def _prepare(self, past: Past, scales: list[float]) -> CurvaturePlan:
        if not any(weight for _, weight in past.weighed_curvatures):
            counted = " that counts" if past.curvatures else ""
            raise PastError(
                f"no task of {past.path or 'the past'}{counted} has a curvature",
                hint="make it with `ella measure ADAPTER --task NAME` and accumulate the adapter "
                "again, or use --energy sum",
            )
        pairs = zip(self.names, self._bs, strict=True)
        return plan_curvature(
            [[term.to(b.device) for term in past.curvature(name)] for name, b in pairs],
            [past.shape(name) for name in self.names],
            scales,
            names=self.names,
            others=None
            if self._count == 1
            else Others(processes.summed, past.directions_size, self._device),
        )


def _on(operand: Tensor | Factors, device: torch.device) -> Tensor | Factors:
    if isinstance(operand, Factors):
        return Factors(operand.p.to(device), operand.q.to(device))
    return operand.to(device)
