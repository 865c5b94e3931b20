"""What the past tasks' answers depend on, and what an update is predicted to cost each of them.

All of it from the curvature factors in the past, without a model and without data. A rise is in
nats per answer token of the past task, to second order, for the expected loss under the model's
own answers; docs/method.md says how far it can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.adapter import Adapter, Update
from ella_cli.adapter.curvature import Curvature
from ella_cli.adapter.curvature_file import read_curvature
from ella_cli.inspect.singular import effective_rank
from ella_cli.kernels import Kronecker, plan_curvature
from ella_cli.past import Past


@dataclass(frozen=True)
class ModuleRise:
    """One module's part of a predicted rise, nats per answer token."""

    name: str
    nats: float


@dataclass(frozen=True)
class Rise:
    """What an update is predicted to cost one past task.

    Attributes:
        task: the past task.
        nats: predicted rise of its loss, per answer token, all modules.
        modules: the same by module, in the model's order.
        random: what a random update of the same norm in each module would cost on average.
        rows: training rows that the curvature was measured on.
        importance: how much the task counts in a penalty; `nats` is in full whatever it is.
        trained_against: whether the update was trained with these estimates as its penalty.
    """

    task: str
    nats: float
    modules: tuple[ModuleRise, ...]
    random: float
    rows: int
    importance: float = 1.0
    trained_against: bool = False

    @property
    def worst(self) -> ModuleRise:
        return max(self.modules, key=lambda one: one.nats)


@dataclass(frozen=True)
class SequenceRises:
    """Predicted costs within a sequence, nats per answer token.

    Attributes:
        nats: nats[j][i] is the update of task j's cost to task i; None unless i came before j.
        trained_against: the tasks that were trained with such estimates as their penalty.
    """

    tasks: tuple[str, ...]
    nats: tuple[tuple[float | None, ...], ...]
    trained_against: tuple[str, ...]


@dataclass(frozen=True)
class ModuleCurvature:
    """Where one task's curvature sits.

    Attributes:
        share: of the task's trace, Σ tr G tr C over modules.
        g_rank, c_rank: effective ranks, exp of the entropy of the eigenvalues above the floor.
        g_dropped, c_dropped: shares of the traces that truncation cut off; None if not known.
    """

    name: str
    share: float
    g_rank: float
    c_rank: float
    g_dropped: float | None
    c_dropped: float | None


@dataclass(frozen=True)
class TaskCurvature:
    """`trace` is Σ tr G tr C, of the blocks alone: nats per answer token for ΔW of variance 2.

    Attributes:
        contrast: how much more its answers cost to one another's questions, nats an answer; None
            where it was not measured.
        importance: how much it counts in a penalty.
    """

    task: str
    trace: float
    coherence: float
    rows: int
    contrast: float | None
    importance: float
    modules: tuple[ModuleCurvature, ...]


def rises_of(adapter: Adapter, past: Past) -> tuple[Rise, ...]:
    """A rise for each past task that has measured its curvature, the costliest first.

    Raises:
        AdapterError: a curvature is damaged.
    """
    names = {task.digest: task.name for task in past.tasks}
    found = []
    for curvature in past.curvatures:
        digest = curvature.record.adapter
        if digest == adapter.digest or digest not in names:
            continue
        if any(name in adapter.sources for name in curvature.names):
            found.append(_rise(names[digest], curvature, adapter))
    return tuple(sorted(found, key=lambda rise: -rise.nats))


def predicted_rise(update: Adapter, earlier: Adapter) -> float | None:
    """What `update` is predicted to cost the task of `earlier`; None where nothing is measured.

    Raises:
        AdapterError: the curvature beside `earlier` is damaged.
    """
    curvature = read_curvature(earlier)
    if curvature is None:
        return None
    return math.fsum(part.nats for part in _parts(update, curvature))


def rises_of_sequence(adapters: Sequence[Adapter]) -> SequenceRises | None:
    """What each update was predicted to cost the tasks before it; None where nothing is measured.

    Args:
        adapters: of one sequence, oldest first.

    Raises:
        AdapterError: a curvature is damaged.
    """
    measured = [read_curvature(adapter) for adapter in adapters]
    if not any(measured[:-1]):
        return None
    nats = tuple(
        tuple(
            None
            if curvature is None or earlier >= later
            else math.fsum(part.nats for part in _parts(update, curvature))
            for earlier, curvature in enumerate(measured)
        )
        for later, update in enumerate(adapters)
    )
    against = tuple(one.task for one in adapters if _trained_against_curvature(one))
    return SequenceRises(tuple(adapter.task for adapter in adapters), nats, against)


def curvatures_of_tasks(past: Past) -> tuple[TaskCurvature, ...]:
    """Where each measured task's curvature sits, in the past's order.

    Raises:
        AdapterError: a curvature is damaged.
    """
    names = {task.digest: task.name for task in past.tasks}
    return tuple(_task(names.get(one.record.adapter, one.record.task), one)
                 for one in past.curvatures)  # fmt: skip


def costs(updates: Mapping[str, Update], terms: Mapping[str, Kronecker]) -> dict[str, float]:
    """What each module's update is predicted to cost one task, nats per answer token, in f64.

    Modules move its answers together: a module's part of that is negative where it takes back what
    others do, and only the sum says what the update costs.

    Args:
        updates: of all modules, together; those without a term cost nothing.
        terms: the task's, by module.
    """
    common = [name for name in updates if name in terms]
    if not common:
        return {}
    plan = plan_curvature(
        [[terms[name]] for name in common],
        [terms[name].shape for name in common],
        [updates[name].scale for name in common],
        names=common,
    )
    with torch.no_grad():
        bs, as_ = zip(
            *((updates[n].b.double(), updates[n].a.double()) for n in common), strict=True
        )
        _, values = plan(bs, as_)
    return dict(zip(common, values.tolist(), strict=True))


def _parts(update: Adapter, curvature: Curvature) -> list[ModuleRise]:
    common = [name for name in curvature.names if name in update.sources]
    found = costs(
        {name: update.update(name) for name in common},
        {name: curvature.kronecker(name) for name in common},
    )
    return [ModuleRise(name, nats) for name, nats in found.items()]


def _trained_against_curvature(adapter: Adapter) -> bool:
    return (adapter.manifest or {}).get("energy") == "curvature"


def _rise(task: str, curvature: Curvature, adapter: Adapter) -> Rise:
    modules, random = _parts(adapter, curvature), 0.0
    for part in modules:
        term = curvature.kronecker(part.name)
        rows, columns = adapter.shape(part.name)
        mean = (term.trace + _square(term)) / (rows * columns)
        random += 0.5 * adapter.update(part.name).norm ** 2 * mean
    total = math.fsum(one.nats for one in modules)
    record = curvature.record
    against = _trained_against_curvature(adapter)
    return Rise(task, total, tuple(modules), random, record.rows, record.importance, against)


def _square(term: Kronecker) -> float:
    """‖·‖²_F of the module's part of all directions, Σ_d ‖U R_d Vᵀ‖²."""
    if term.directions is None:
        return 0.0
    r = term.directions.double()
    u, v = term.u[:, : r.shape[1]].double(), term.v[:, : r.shape[2]].double()
    return float((((u.T @ u) @ r @ (v.T @ v)) * r).sum())


def _task(task: str, curvature: Curvature) -> TaskCurvature:
    traces, ranks = {}, {}
    for name in curvature.names:
        term = curvature.kronecker(name)
        traces[name] = term.trace
        ranks[name] = (_effective_rank(term.u), _effective_rank(term.v))
    total = math.fsum(traces.values())
    modules = []
    for name, trace in traces.items():
        dropped = curvature.record.dropped.get(name, (None, None))
        share = trace / total if total else 0.0
        modules.append(ModuleCurvature(name, share, *ranks[name], *dropped))
    record = curvature.record
    return TaskCurvature(
        task,
        total,
        record.coherence,
        record.rows,
        record.contrast,
        record.importance,
        tuple(modules),
    )


def _effective_rank(factor: Tensor) -> float:
    """Of factor · factorᵀ, whose eigenvalues are the squares of the singular values."""
    return effective_rank(torch.linalg.svdvals(factor.double()).square())
