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

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import Optimizer

from ella_cli.errors import SettingsError
from ella_cli.kernels import Kronecker
from ella_cli.model.lora import lora_layers, lora_pair
from ella_cli.past import Past

# Eigenvectors that hold this share of the trace are turned into coordinates; of what is left, flat
# beside them, any orthonormal coordinates will do.
_HELD = 0.999
# Rows or columns, shape, dtype and device of parameters that are turned together.
_Alike = tuple[bool, torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True, eq=False)
class Turns:
    """n orthogonal matrices Q = I - V T Vᵀ (D, D), each the product of K Householder reflections.

    The first columns of each are those asked for, up to their signs. The others come as the
    reflections have them: close to the coordinates there were.

    Source: Schreiber and Van Loan 1989, the compact WY form: three products, for all n at once.
    """

    reflectors: Tensor  # V (n, D, K)
    inner: Tensor  # T (n, K, K), upper triangular

    @staticmethod
    def onto(columns: Tensor) -> Turns:
        """One matrix, whose first columns are these.

        Args:
            columns: (D, K), orthonormal, f64, K at most D.
        """
        below, scales = torch.geqrf(columns)
        reflectors = below.tril(-1)
        reflectors.diagonal().fill_(1)
        # T⁻¹ = striu(VᵀV) + diag(1 / scales), with the scales, which may be 0, taken out.
        unit = (reflectors.mT @ reflectors).triu(1) * scales
        eye = torch.eye(len(scales), dtype=unit.dtype, device=unit.device)
        inner = torch.linalg.solve_triangular(unit + eye, eye, upper=True, unitriangular=True)
        return Turns(reflectors[None], (scales[:, None] * inner)[None])

    @staticmethod
    def together(each: Sequence[Turns]) -> Turns:
        """All of them, of one D; where their K differ, with reflections by nothing, v = 0."""
        most = max(one.inner.shape[-1] for one in each)
        lacks = [most - one.inner.shape[-1] for one in each]
        both = list(zip(each, lacks, strict=True))
        return Turns(
            torch.cat([pad(one.reflectors, (0, lack)) for one, lack in both]),
            torch.cat([pad(one.inner, (0, lack, 0, lack)) for one, lack in both]),
        )

    def to(self, like: Tensor) -> Turns:
        """In the precision and on the device of `like`."""
        return Turns(self.reflectors.to(like), self.inner.to(like))

    def into(self, rows: Tensor) -> Tensor:
        """Qᵀ x: x (n, D, R) in the new coordinates."""
        return self._times(self.inner.mT, rows)

    def back(self, rows: Tensor) -> Tensor:
        """Q x, which undoes `into`."""
        return self._times(self.inner, rows)

    def _times(self, inner: Tensor, rows: Tensor) -> Tensor:
        """X - V inner Vᵀ x."""
        parts = self.reflectors, inner, rows
        if rows.device.type == "cuda":
            return _less(*parts)  # in three launches
        # One by one, each V is still in the cache when it is read again.
        return torch.stack([_less(*one) for one in zip(*parts, strict=True)])


def _less(v: Tensor, t: Tensor, x: Tensor) -> Tensor:
    return x - v @ (t @ (v.mT @ x))


@dataclass(frozen=True, eq=False)
class Turned:
    """Parameters of one shape and the turns of each.

    Attributes:
        rows: whether what is turned are their rows, as B's (M, R) are, or the columns of A (R, N).
    """

    parameters: tuple[Tensor, ...]
    turns: Turns
    rows: bool

    def within(self, held: Set[int]) -> Turned:
        """Those of its parameters whose ids are among `held`."""
        here = [i for i, one in enumerate(self.parameters) if id(one) in held]
        if len(here) == len(self.parameters):
            return self
        turns = Turns(self.turns.reflectors[here], self.turns.inner[here])
        return Turned(tuple(self.parameters[i] for i in here), turns, self.rows)

    def turn(self, *kinds: Sequence[Tensor], into: bool) -> None:
        """Turns parameters, or those and their gradients side by side, where they lie.

        What takes time is reading V, whatever it is multiplied with.
        """
        plain = torch.cat([self._upright(torch.stack(list(one))) for one in kinds], dim=-1)
        turned = self.turns.into(plain) if into else self.turns.back(plain)
        for one, part in zip(kinds, turned.chunk(len(kinds), dim=-1), strict=True):
            torch._foreach_copy_(list(one), self._upright(part).contiguous().unbind())

    def _upright(self, stacked: Tensor) -> Tensor:
        """What is turned as rows, and back."""
        return stacked if self.rows else stacked.mT


class PastBasis:
    """Makes an optimizer step in the past's coordinates: `PastBasis(model, past).attach(adamw)`.

    Every adapted module of `model` that the past knows curvature of gets a turn for B (M, R), the
    eigenvectors of Σ w tr(C) G over past tasks, and one for A (R, N), those of Σ w tr(G) C; w is
    what a task counts for the energy. Others step as before.

    Args:
        model: a PEFT model with one active LoRA adapter, in f32 or f64.
        past: with curvature; without, nothing is turned.

    Raises:
        SettingsError: the adapter is in half precision, which turns to and fro would ruin.
    """

    def __init__(self, model: nn.Module, past: Past) -> None:
        alike: dict[_Alike, list[tuple[Tensor, Turns]]] = defaultdict(list)
        for name, layer in lora_layers(model).items():
            terms = past.curvature(name) if name in past.names else []
            if not terms:
                continue
            b, a, _ = lora_pair(layer)
            for parameter, side, rows in ((b, _outputs(terms), True), (a, _inputs(terms), False)):
                if parameter.dtype.itemsize < 4:
                    raise SettingsError(
                        f"{name} has its LoRA weights in {parameter.dtype}",
                        hint="give them to the optimizer in float32, as PEFT does by default",
                    )
                turn = Turns.onto(leading(side.to(parameter.device))).to(parameter)
                key = rows, parameter.shape, parameter.dtype, parameter.device
                alike[key].append((parameter, turn))
        self.turned = [
            Turned(tuple(one for one, _ in members), Turns.together([t for _, t in members]), rows)
            for (rows, *_), members in alike.items()
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """From now on parameters and gradients are turned before each step, and back after it.

        Weight decay and a gradient's norm are the same in both coordinates. The optimizer's states
        are of the turned ones.
        """
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        turned = [one.within(held) for one in self.turned]
        optimizer.register_step_pre_hook(lambda *_: _turn(turned, into=True))
        optimizer.register_step_post_hook(lambda *_: _turn(turned, into=False))


@torch.no_grad()
def _turn(turned: Iterable[Turned], *, into: bool) -> None:
    for whole in turned:
        # What has no gradient is not stepped.
        one = whole.within({id(p) for p in whole.parameters if p.grad is not None})
        if one.parameters:
            gradients = [p.grad for p in one.parameters if p.grad is not None]
            one.turn(one.parameters, *([gradients] if into else []), into=into)


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
