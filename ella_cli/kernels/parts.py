"""A plan's parts: modules that are computed together, and how.

Each part is called with the B and A of its members and returns their losses, ∂/∂B and ∂/∂A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ella_cli.kernels.eager import eager_terms
from ella_cli.kernels.form import EAGER, FUSED, GRAM, TILED
from ella_cli.kernels.fused import fused_terms
from ella_cli.kernels.gram import GramConstants, gram_constants, gram_terms
from ella_cli.kernels.launch import Group, Launch, group_of
from ella_cli.kernels.operands import Factors, Past, compute_dtype
from ella_cli.kernels.schedule import LARGEST_RANK, blocks_for, launches_of


class Terms(NamedTuple):
    """Losses and gradients, one a member, in the members' order."""

    values: Sequence[Tensor] | Tensor
    dbs: Sequence[Tensor] | Tensor
    das: Sequence[Tensor] | Tensor


class Module(NamedTuple):
    """What of one module is constant during a task."""

    past: Past
    rank: int
    scale: float
    form: str


@dataclass(frozen=True)
class Part:
    """`members` are positions among the plan's modules."""

    members: tuple[int, ...]
    terms: Callable[[Sequence[Tensor], Sequence[Tensor]], Terms]


def parts_of(
    modules: Sequence[Module],
    bs: Sequence[Tensor],
    as_: Sequence[Tensor],
    *,
    precision: str | None,
    keep: bool,
    kernels: bool | None,
) -> list[Part]:
    """Divides modules by what they can share, and prepares what is constant.

    Args:
        modules: their pasts, ranks, scales and forms.
        bs: LoRA B of each; only dtype, shape and device are looked at.
        as_: LoRA A of each, likewise.
        precision: of the products in Triton kernels.
        keep: hold the Gram form's pair products from call to call.
        kernels: run Triton; None for where there is CUDA, True also in its interpreter.
    """
    together: dict[tuple[Any, ...], list[int]] = {}
    for i, (module, b, a) in enumerate(zip(modules, bs, as_, strict=True)):
        past = module.past
        key: tuple[Any, ...]
        if module.rank == 0 or (isinstance(past, Factors) and past.rank == 0):
            key = ("nothing",)
        elif module.form == GRAM and isinstance(past, Factors):
            key = (GRAM, b.shape, a.shape, past.rank, b.device, compute_dtype(b, a))
        elif module.form in (FUSED, TILED) and _in_kernel(b, a, past, kernels):
            key = ("launch", b.device, group_of(b, a, past, precision))
        else:
            key = (EAGER if module.form == EAGER else FUSED,)
        together.setdefault(key, []).append(i)
    parts = []
    for (kind, *rest), members in together.items():
        own = [modules[i] for i in members]
        pasts, scales = [m.past for m in own], [m.scale for m in own]
        terms: Callable[[Sequence[Tensor], Sequence[Tensor]], Terms]
        if kind == "nothing":
            terms = _zero_terms
        elif kind == GRAM:
            factors = [past for past in pasts if isinstance(past, Factors)]
            terms = _Gram(gram_constants(factors, rest[-1], keep=keep), scales)
        elif kind == "launch":
            parts += _launched(rest[-1], members, own)
            continue
        else:
            terms = _OneByOne(eager_terms if kind == EAGER else fused_terms, pasts, scales)
        parts.append(Part(tuple(members), terms))
    return parts


def _launched(group: Group, members: Sequence[int], modules: Sequence[Module]) -> list[Part]:
    *_, factored, _, precision, padded = group
    shapes = [(*module.past.shape, module.rank) for module in modules]
    parts = []
    for chosen in launches_of(shapes, blocks_for(padded, precision, factored=factored)):
        own = [modules[i] for i in chosen]
        launch = Launch(group, [m.past for m in own], [m.rank for m in own], [m.scale for m in own])
        parts.append(Part(tuple(members[i] for i in chosen), _Kernels(launch)))
    return parts


def _in_kernel(b: Tensor, a: Tensor, past: Past, kernels: bool | None) -> bool:
    """Triton computes on CUDA, but for f64 and for ranks its tiles do not hold."""
    wanted = b.device.type == "cuda" if kernels is None else kernels
    stored = (past.p, past.q) if isinstance(past, Factors) else (past,)
    return wanted and b.shape[1] <= LARGEST_RANK and compute_dtype(b, a, *stored) == torch.float32


def _zero_terms(bs: Sequence[Tensor], as_: Sequence[Tensor]) -> Terms:
    """Of an empty update, or of the first task, which has no past."""
    return Terms(
        [
            torch.zeros((), dtype=compute_dtype(b, a), device=b.device)
            for b, a in zip(bs, as_, strict=True)
        ],
        [torch.zeros_like(b) for b in bs],
        [torch.zeros_like(a) for a in as_],
    )


@dataclass(frozen=True)
class _OneByOne:
    of_one: Callable[[Tensor, Tensor, Past, float], tuple[Tensor, Tensor, Tensor]]
    pasts: Sequence[Past]
    scales: Sequence[float]

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> Terms:
        terms = map(self.of_one, bs, as_, self.pasts, self.scales)
        return Terms(*zip(*terms, strict=True))


@dataclass(frozen=True)
class _Gram:
    constants: GramConstants
    scales: Sequence[float]

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> Terms:
        return Terms(*gram_terms(bs, as_, self.constants, self.scales))


@dataclass(frozen=True)
class _Kernels:
    launch: Launch

    def __call__(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> Terms:
        return Terms(*self.launch(bs, as_))
