"""Where an update meets the past: with whom it collides, in which modules, and how hard.

Two measures, of different things: the inner product ⟨ΔW, W_past⟩ has a sign and is 0 for updates
that are orthogonal as vectors even if they use the same coordinates; ‖ΔW ⊙ W_past‖², the penalty,
has none and sees only which coordinates both use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from torch import Tensor

from ella_cli.adapter import Adapter
from ella_cli.errors import ShapeError
from ella_cli.inspect.curvature import Rise, rises_of
from ella_cli.inspect.energy import energy_vector
from ella_cli.inspect.products import as_factors, cosine, inner, norm, shared_energy
from ella_cli.inspect.task_updates import separate_tasks, task_updates, why_not_separate
from ella_cli.inspect.tiles import row_blocks
from ella_cli.kernels import Factors
from ella_cli.past import Past

TOP_SHARE = 0.01


@dataclass(frozen=True)
class Overlap:
    """An update against a past, or against one task of it, in one module or in all together.

    Attributes:
        past_norm: ‖W‖_F of the signed sum.
        energy_norm: ‖E‖_F; the same where E = |W|.
        inner: ⟨ΔW, W⟩, signed.
        cosine: the same over both norms; None where one is 0.
        penalty: ‖ΔW ⊙ E‖², not weighted by λ; for one past task E = |ΔW_i|.
        chance: what a random update of the same norm in each module would pay on average,
            ‖ΔW‖² ‖E‖² / (M N).
        collision: penalty / chance; 1 is chance, None where there is nothing to collide with.
        top_share: share of ‖ΔW‖² on the 1% of the module's coordinates with the most energy.
        top_expected: the same for a random update; None with `top_share` where not computed.
    """

    name: str
    update_norm: float
    past_norm: float
    energy_norm: float
    inner: float
    cosine: float | None
    penalty: float
    chance: float
    collision: float | None
    top_share: float | None = None
    top_expected: float | None = None


@dataclass(frozen=True)
class OverlapReport:
    adapter_task: str
    modules: tuple[Overlap, ...]
    total: Overlap
    tasks: tuple[Overlap, ...]
    worst: tuple[tuple[str, Overlap], ...]
    only_in_adapter: tuple[str, ...]
    only_in_past: tuple[str, ...]
    contained_as: str | None
    why_no_tasks: str = ""
    rises: tuple[Rise, ...] = ()


def overlap_of(adapter: Adapter, past: Past) -> OverlapReport:
    """Reads each common module once; `worst` names, for each past task, where it is hit hardest.

    Raises:
        ShapeError: adapter and past have no module in common, or shapes differ.
    """
    common = common_modules(adapter, past)
    names = separate_tasks(past)
    modules: list[Overlap] = []
    by_task: list[list[Overlap]] = [[] for _ in names]
    for name in common:
        update = as_factors(adapter.update(name))
        modules.append(_module(name, update, past))
        for found, other in zip(by_task, task_updates(past, name) if names else (), strict=True):
            if other is not None:
                found.append(between(name, update, other))
    total = together("all modules", modules)
    return OverlapReport(
        adapter_task=adapter.task,
        modules=tuple(modules),
        total=total,
        tasks=tuple(together(n, found) for n, found in zip(names, by_task, strict=True) if found),
        worst=tuple(
            (task, max(found, key=lambda one: one.penalty))
            for task, found in zip(names, by_task, strict=True)
            if found
        ),
        only_in_adapter=tuple(n for n in adapter.names if n not in set(common)),
        only_in_past=tuple(n for n in past.names if n not in set(common)),
        contained_as=contained_as(adapter, past),
        why_no_tasks="" if names else why_not_separate(past),
        rises=rises_of(adapter, past),
    )


def common_modules(adapter: Adapter, past: Past) -> tuple[str, ...]:
    """
    Raises:
        ShapeError: no module in common, or one of different shape.
    """
    known = set(past.names)
    common = tuple(name for name in adapter.names if name in known)
    if not common:
        raise ShapeError(
            f"{adapter.path} and {past.path or 'the past'} have no module in common: "
            f"{_first(adapter.names)} there, {_first(past.names)} here",
            hint="adapter and past must be of one base model",
        )
    for name in common:
        if adapter.shape(name) != past.shape(name):
            raise ShapeError(
                f"{name} is {adapter.shape(name)} in {adapter.path} and {past.shape(name)} in "
                f"{past.path or 'the past'}",
                hint="adapter and past must be of one base model",
            )
    return common


def contained_as(adapter: Adapter, past: Past) -> str | None:
    """The name under which the past already holds this very adapter."""
    digest = adapter.digest
    return next((task.name for task in past.tasks if task.digest == digest), None)


def between(name: str, update: Factors, other: Factors) -> Overlap:
    """Two updates of one module, from their factors alone."""
    rows, columns = update.shape
    one, two = norm(update), norm(other)
    penalty = shared_energy(update, other)
    chance = (one * two) ** 2 / (rows * columns)
    product = inner(update, other)
    return Overlap(
        name=name,
        update_norm=one,
        past_norm=two,
        energy_norm=two,
        inner=product,
        cosine=cosine(product, one, two),
        penalty=penalty,
        chance=chance,
        collision=penalty / chance if chance > 0 else None,
    )


def _module(name: str, update: Factors, past: Past) -> Overlap:
    operand = past.operand(name)
    signed = operand if past.record.energy.is_plain else past.delta(name)
    threshold, top_count = _top(operand)
    penalty = top = square = energy = 0.0
    reached = 0
    q = update.q.double()
    for rows, block in row_blocks(operand):
        squares = (update.p[rows].double() @ q).square_()
        magnitude = block.abs_()
        penalty += float((squares * magnitude.square()).sum())
        energy += float(magnitude.square().sum())
        high = magnitude.float() >= threshold
        reached += int(high.sum())
        top += float(squares[high].sum())
        square += float(squares.sum())
    count = operand.shape[0] * operand.shape[1]
    product = inner(update, signed)
    chance = square * energy / count
    past_norm = math.sqrt(energy) if signed is operand else _norm(signed)
    measured = top_count > 0 and square > 0
    return Overlap(
        name=name,
        update_norm=math.sqrt(square),
        past_norm=past_norm,
        energy_norm=math.sqrt(energy),
        inner=product,
        cosine=cosine(product, math.sqrt(square), past_norm),
        penalty=penalty,
        chance=chance,
        collision=penalty / chance if chance > 0 else None,
        top_share=top / square if measured else None,
        # Ties at the threshold are all taken, so the share of coordinates is counted, not assumed.
        top_expected=reached / count if measured else None,
    )


def _top(operand: Tensor | Factors) -> tuple[float, int]:
    """The energy that the top share of coordinates reach, and how many that is; 0 for no energy."""
    energy = energy_vector(operand)
    count = max(1, round(TOP_SHARE * energy.size))
    energy.partition(energy.size - count)
    threshold = float(energy[energy.size - count])
    if threshold == 0.0:
        # Fewer coordinates than the share hold any energy: those that do are the top.
        count = int(numpy.count_nonzero(energy))
        threshold = float(numpy.finfo(numpy.float32).smallest_subnormal)
    return threshold, count


def _norm(matrix: Tensor | Factors) -> float:
    return math.sqrt(sum(float(block.square().sum()) for _, block in row_blocks(matrix)))


def together(name: str, parts: list[Overlap]) -> Overlap:
    """Modules as one long vector."""
    update = math.sqrt(math.fsum(p.update_norm**2 for p in parts))
    past = math.sqrt(math.fsum(p.past_norm**2 for p in parts))
    product = math.fsum(p.inner for p in parts)
    penalty = math.fsum(p.penalty for p in parts)
    chance = math.fsum(p.chance for p in parts)
    return Overlap(
        name=name,
        update_norm=update,
        past_norm=past,
        energy_norm=math.sqrt(math.fsum(p.energy_norm**2 for p in parts)),
        inner=product,
        cosine=cosine(product, update, past),
        penalty=penalty,
        chance=chance,
        collision=penalty / chance if chance > 0 else None,
        top_share=_mean([(p.top_share, p.update_norm**2) for p in parts]),
        top_expected=_mean([(p.top_expected, p.update_norm**2) for p in parts]),
    )


def _mean(weighted: list[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in weighted if value is not None]
    whole = math.fsum(weight for _, weight in known)
    return math.fsum(v * w for v, w in known) / whole if whole > 0 else None


def _first(names: tuple[str, ...]) -> str:
    return names[0] if names else "none"
