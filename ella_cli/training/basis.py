"""AdamW in the eigenbasis of what the past's answers depend on.

A past is steep along a few directions and flat along most, and none of them lies along a
coordinate of B or A. AdamW divides each coordinate's gradient by its own recent size; where every
coordinate has a share of the steep directions, the penalty's large gradients slow all of them
down. Turned into the eigenvectors of the past's G (B's rows) and C (A's columns), the steep
directions are coordinates of their own, and the others are learned at full speed.

The loss, the penalty and its minimum stay what they are; only the way there differs. Muon, which
orthogonalises, is the same in every basis.

Source: Vyas et al. 2024 (SOAP, arXiv 2409.11321), Adam in the eigenbasis of what Shampoo gathers
of the task under way; here the basis is the past's and does not change during a task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ella_cli.kernels import Kronecker
from ella_cli.model.lora import lora_layers, lora_pair
from ella_cli.past import Past

# Eigenvectors that hold this share of the trace are turned into coordinates; of what is left, flat
# beside them, any orthonormal coordinates will do.
_HELD = 0.999


@dataclass(frozen=True, eq=False)
class Turn:
    """An orthogonal matrix Q (D, D) whose first K columns were asked for, as K reflections.

    The others come as the reflections have them: close to the coordinates there were.
    """

    reflectors: Tensor  # (D, K)
    scales: Tensor  # (K,)

    @staticmethod
    def onto(columns: Tensor) -> Turn:
        """
        Args:
            columns: (D, K), orthonormal, K at most D.
        """
        return Turn(*torch.geqrf(columns))

    def into(self, rows: Tensor) -> Tensor:
        """Qᵀ x: x (D, R) in the new coordinates."""
        turned: Tensor = torch.ormqr(self.reflectors, self.scales, rows, transpose=True)
        return turned

    def back(self, rows: Tensor) -> Tensor:
        """Q x, which undoes `into`."""
        turned: Tensor = torch.ormqr(self.reflectors, self.scales, rows)
        return turned


class PastBasis:
    """Makes an optimizer step in the past's coordinates: `PastBasis(model, past).attach(adamw)`.

    Every adapted module of `model` that the past knows curvature of gets a `Turn` for B (M, R),
    the eigenvectors of Σ w tr(C) G over past tasks, and one for A (R, N), those of Σ w tr(G) C;
    w is what a task counts for the energy. Others step as before.

    Args:
        model: a PEFT model with one active LoRA adapter.
        past: with curvature; without, nothing is turned.

    Attributes:
        turns: of each B and A, its turn, and whether its rows are what is turned (B's are).
    """

    def __init__(self, model: nn.Module, past: Past) -> None:
        self.turns: dict[Tensor, tuple[Turn, bool]] = {}
        for name, layer in lora_layers(model).items():
            terms = past.curvature(name) if name in past.names else []
            if not terms:
                continue
            b, a, _ = lora_pair(layer)
            for parameter, side, rows in ((b, _outputs(terms), True), (a, _inputs(terms), False)):
                turn = Turn.onto(leading(side).to(parameter.device, parameter.dtype))
                self.turns[parameter] = turn, rows

    def attach(self, optimizer: Optimizer) -> None:
        """From now on parameters and gradients are turned before each step, and back after it.

        Weight decay and a gradient's norm are the same in both coordinates. The optimizer's states
        are of the turned ones.
        """
        optimizer.register_step_pre_hook(lambda *_: self._turn(optimizer, into=True))
        optimizer.register_step_post_hook(lambda *_: self._turn(optimizer, into=False))

    @torch.no_grad()
    def _turn(self, optimizer: Optimizer, *, into: bool) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                # One without a gradient is not stepped.
                if parameter.grad is None or parameter not in self.turns:
                    continue
                turn, rows = self.turns[parameter]
                for tensor in (parameter, parameter.grad) if into else (parameter,):
                    plain = tensor if rows else tensor.T
                    turned = turn.into(plain) if into else turn.back(plain)
                    plain.copy_(turned)


def leading(factor: Tensor) -> Tensor:
    """Eigenvectors of S Sᵀ that hold nearly all of its trace, largest first.

    Args:
        factor: S (D, K).

    Returns:
        (D, k <= K) f64, orthonormal.
    """
    s = factor.double()
    if s.shape[0] <= s.shape[1]:
        values, vectors = torch.linalg.eigh(s @ s.T)  # ascending
    else:
        values, inner = torch.linalg.eigh(s.T @ s)
        vectors = s @ inner / values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    share = values.cumsum(0) / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    held: Tensor = vectors[:, : int((share < _HELD).sum()) + 1]
    return held


def _outputs(terms: Iterable[Kronecker]) -> Tensor:
    """S (M, K) with S Sᵀ = Σ tr(C) G, floors aside."""
    return torch.cat([one.u * _trace(one.v) ** 0.5 for one in terms], dim=1)


def _inputs(terms: Iterable[Kronecker]) -> Tensor:
    """S (N, K) with S Sᵀ = Σ tr(G) C, floors aside."""
    return torch.cat([one.v * _trace(one.u) ** 0.5 for one in terms], dim=1)


def _trace(factor: Tensor) -> float:
    return float(factor.double().square().sum())
