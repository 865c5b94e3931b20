"""The methods that can be compared, each a name, what its stages stand on, and one function.

A new method is one function that gives its penalty and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ella_cli.adapter import Adapter
from ella_cli.config import SUMMED_METHODS, Energy
from ella_cli.errors import AdapterError, PastError
from ella_cli.model.lora import lora_layers, lora_pair
from ella_cli.past import Past
from ella_cli.penalty import CurvaturePenalty, EllaPenalty

Penalty = Callable[[], Tensor]


@dataclass(frozen=True)
class Situation:
    """What a penalty may look at when a task starts.

    Attributes:
        model: the PEFT model with the new adapter on it.
        past: the sum of all earlier updates, None for a first task.
        earlier: the earlier adapters, in order.
        energy: what `ella` protects; None for what the past file says.
        olora_l2: O-LoRA's second weight, relative to nothing: λ₂ itself.
        lam: the first weight, by which the penalty will be multiplied.
        share: (rank, count) of this process.
    """

    model: nn.Module
    past: Past | None
    earlier: Sequence[Adapter]
    olora_l2: float
    lam: float
    share: tuple[int, int] = (0, 1)
    energy: Energy | None = None


@dataclass(frozen=True)
class Method:
    """How a stage of the sequence is trained, and what the model is after it.

    Attributes:
        carried: the last stage's adapter is trained on, instead of a fresh one.
        joint: all tasks are one stage.
        apart: the earlier adapters themselves are needed, beside their sum.
        replays: a share of each past task's rows is learned again with the new ones.
        lam: the weight of the penalty unless the user gives one; `strength` knows "auto".
        penalty: what is added to the loss, None for nothing.
    """

    name: str
    carried: bool = False
    joint: bool = False
    apart: bool = False
    replays: bool = False
    lam: float | Literal["auto"] = 0.0
    penalty: Callable[[Situation], Penalty | None] | None = None

    @property
    def summed(self) -> bool:
        """Whether each task gets a new adapter on top of the sum of all earlier ones, which the
        model is after a stage; otherwise the stage's own adapter is all there is.
        """
        return self.name in SUMMED_METHODS

    def measures(self, curvature_rows: int) -> bool:
        """Whether a stage ends with its curvature measured: only what is summed can protect it."""
        return self.summed and curvature_rows > 0


def ella_penalty(now: Situation) -> Penalty | None:
    """‖ΔW ⊙ W_past‖²_F over all modules, or what the curvature of the past tasks predicts.

    Nothing is protected before the first task is learned.

    Raises:
        PastError: the past's energy is of another kind or weighs its tasks otherwise, or no task
            has measured its curvature.
    """
    past = now.past
    if past is None or not past.tasks:
        return None
    if (now.energy or past.energy) == "curvature":
        return CurvaturePenalty(now.model, past, share=now.share)
    if now.energy is not None and now.energy != past.coordinates:
        raise PastError(
            f"{past.path or 'the past'} has the energy {past.coordinates}, not {now.energy}",
            hint=f"make one with `ella accumulate ADAPTER... --past FILE --energy {now.energy}`",
        )
    if past.energy == "curvature" and past.record.energy.weighs:
        raise PastError(
            f"{past.path or 'the past'} weighs its tasks' curvature by --last or --decay, and its "
            "coordinates are those of all tasks alike",
            hint="make one with `ella accumulate ADAPTER... --past FILE --energy sum` and the same",
        )
    return EllaPenalty(now.model, past, share=now.share)


def olora_penalty(now: Situation) -> Penalty | None:
    """Σ |A_old A_newᵀ| over modules, entrywise, plus λ₂ times the unsquared norms of new A and B.

    Source: cmnfriend/O-LoRA, commit 07117e1, as told in its training step; A only, not B.
    """
    layers = lora_layers(now.model)
    pairs = {name: lora_pair(layer) for name, layer in layers.items()}
    stacked: dict[str, Tensor] = {}
    for name, (_, a, _) in pairs.items():
        olds = [_old_a(adapter, name, a) for adapter in now.earlier]
        if olds:
            stacked[name] = torch.cat(olds)  # (R_past, N)
    # The trainer multiplies all of this by λ₁, so λ₂ is brought to its scale.
    l2 = now.olora_l2 / now.lam if now.lam else 0.0
    if not stacked and not l2:
        return None

    def penalty() -> Tensor:
        terms = [(old @ pairs[name][1].T).abs().sum() for name, old in stacked.items()]
        if l2:
            terms += [l2 * (b.norm() + a.norm()) for b, a, _ in pairs.values()]
        return torch.stack(terms).sum()

    return penalty


def _old_a(adapter: Adapter, name: str, like: Tensor) -> Tensor:
    if name not in adapter.names:
        raise AdapterError(
            f"{adapter.path} has no update for {name}",
            hint="all adapters of a sequence adapt the same modules",
        )
    return adapter.update(name).a.to(like.device, like.dtype)  # (R, N)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "ella",
            lam="auto",
            penalty=ella_penalty,
        ),
        Method("inclora"),
        Method("seqlora", carried=True),
        Method(
            "olora",
            apart=True,
            lam=0.5,
            penalty=olora_penalty,
        ),
        Method("replay", replays=True),
        Method("single"),
        Method("joint", joint=True),
    )
}
