"""Who computes the penalty: ours in every form, eager autograd, torch.compile, and PEFT's way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import peft
import torch
from torch import Tensor, nn

from benchmarks.penalty.bench import Bench, Step
from ella_cli.kernels import Factors, PenaltyPlan, plan_penalty

RANK = 8


@dataclass(frozen=True)
class Modules:
    """A set of modules with their pasts, in factors and (unless too large) dense."""

    bs: list[Tensor]
    as_: list[Tensor]
    factors: list[Factors]
    scales: list[float]

    def dense(self, dtype: torch.dtype) -> list[Tensor]:
        return [past.dense().to(dtype) for past in self.factors]


def make_modules(shapes: Sequence[tuple[int, int]], past_tasks: int, bench: Bench) -> Modules:
    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=bench.device) / 16

    past_rank = RANK * past_tasks
    return Modules(
        [normal(m, RANK).requires_grad_() for m, _ in shapes],
        [normal(RANK, n).requires_grad_() for _, n in shapes],
        [Factors(normal(m, past_rank), normal(past_rank, n)) for m, n in shapes],
        [4.0] * len(shapes),
    )


def total_of(plan: PenaltyPlan, modules: Modules) -> Tensor:
    return plan(modules.bs, modules.as_)[0]


def eager_loss(bs: list[Tensor], as_: list[Tensor], pasts: list[Tensor]) -> Tensor:
    terms = [(4.0 * (b @ a) * w).square().sum() for b, a, w in zip(bs, as_, pasts, strict=True)]
    return torch.stack(terms).sum()


def peft_model(shapes: Sequence[tuple[int, int]], device: torch.device) -> nn.Module:
    bare = nn.ModuleList([nn.Linear(n, m, bias=False, device="meta") for m, n in shapes])
    config = peft.LoraConfig(r=RANK, lora_alpha=4 * RANK, target_modules=r"\d+")
    model = peft.get_peft_model(nn.Sequential(*bare), config)
    return model.to_empty(device=device)


def peft_step(shapes: Sequence[tuple[int, int]], pasts: list[Tensor]) -> Step:
    model = peft_model(shapes, pasts[0].device)
    # The base class declares no get_delta_weight; its layers have one.
    delta_of: list[Callable[[str], Tensor]] = [
        module.get_delta_weight  # type: ignore[misc]
        for module in model.modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.06)

    def step() -> None:
        model.zero_grad()
        deltas: list[Tensor] = [peer("default") for peer in delta_of]
        terms = [(d * w).square().sum() for d, w in zip(deltas, pasts, strict=True)]
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]

    return step


def steps_of(
    modules: Modules, shapes: list[tuple[int, int]], dtype: torch.dtype, *, peers: bool
) -> dict[tuple[str, str], Step]:
    """(provider, form) -> one call, loss and gradients."""
    dense = modules.dense(dtype)
    steps: dict[tuple[str, str], Step] = {}

    def backward(loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            for tensor in (*modules.bs, *modules.as_):
                tensor.grad = None
            loss().backward()  # type: ignore[no-untyped-call]

        return step

    for form in ("fused", "tiled", "gram", "auto"):
        pasts = dense if form == "fused" else modules.factors
        if form == "gram" and modules.factors[0].rank > 15 * RANK:
            # Pair products of 800 columns: slower than all others by far, and larger than W_past.
            continue
        plan = plan_penalty(pasts, modules.scales, rank=RANK, form=form)
        words = f"auto ({'+'.join(sorted(set(plan.forms)))})" if form == "auto" else form
        steps["ours", words] = backward(functools.partial(total_of, plan, modules))
    if not peers:
        return steps
    steps["eager autograd", "dense"] = backward(lambda: eager_loss(modules.bs, modules.as_, dense))
    steps["peft get_delta_weight", "dense"] = peft_step(shapes, dense)
    if len(shapes) == 1:
        compiled = torch.compile(eager_loss)
        steps["torch.compile", "dense"] = backward(lambda: compiled(modules.bs, modules.as_, dense))
    return steps
