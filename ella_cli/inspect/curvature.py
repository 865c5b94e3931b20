"""What the past tasks' answers depend on, and what an update is predicted to cost each of them.

All of it from the curvature factors in the past, without a model and without data. A rise is in
nats per answer token of the past task, to second order, for the expected loss under the model's
own answers; docs/method.md says how far it can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.adapter import Adapter, Update
from ella_cli.adapter.curvature import Curvature, read_curvature
from ella_cli.inspect.singular import effective_rank
from ella_cli.kernels import Kronecker
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
        trained_against: whether the update was trained with this very estimate as its penalty.
    """

    task: str
    nats: float
    modules: tuple[ModuleRise, ...]
    random: float
    rows: int
    trained_against: bool = False

    @property
    def worst(self) -> ModuleRise:
        return max(self.modules, key=lambda one: one.nats)


@dataclass(frozen=True)
class ModuleCurvature:
    """Where one task's curvature sits.

    Attributes:
        share: of the task's trace, Σ tr G tr C over modules.
        g_rank, c_rank: effective ranks, exp of the entropy of the eigenvalues.
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
    """`trace` is Σ tr G tr C, nats per answer token for ΔW of variance 2 in every coordinate."""

    task: str
    trace: float
    coherence: float
    rows: int
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
        common = [name for name in curvature.names if name in adapter.sources]
        if common:
            found.append(_rise(names[digest], curvature, adapter, common))
    return tuple(sorted(found, key=lambda rise: -rise.nats))


def predicted_rise(update: Adapter, earlier: Adapter) -> float | None:
    """What `update` is predicted to cost the task of `earlier`; None where nothing is measured.

    Raises:
        AdapterError: the curvature beside `earlier` is damaged.
    """
    curvature = read_curvature(earlier)
    if curvature is None:
        return None
    common = [name for name in curvature.names if name in update.sources]
    return math.fsum(rise(update.update(name), curvature.kronecker(name)) for name in common)


def curvatures_of_tasks(past: Past) -> tuple[TaskCurvature, ...]:
    """Where each measured task's curvature sits, in the past's order.

    Raises:
        AdapterError: a curvature is damaged.
    """
    names = {task.digest: task.name for task in past.tasks}
    return tuple(_task(names.get(one.record.adapter, one.record.task), one)
                 for one in past.curvatures)  # fmt: skip


def rise(update: Update, term: Kronecker) -> float:
    """½ tr(ΔWᵀ G ΔW C) of one module, in f64."""
    u, v = term.u.double(), term.v.double()
    product = (u.T @ update.b.double()) @ (update.a.double() @ v)  # (K_G, K_C)
    return 0.5 * update.scale**2 * float(product.square().sum())


def _rise(task: str, curvature: Curvature, adapter: Adapter, names: Iterable[str]) -> Rise:
    modules, random = [], 0.0
    for name in names:
        term, update = curvature.kronecker(name), adapter.update(name)
        modules.append(ModuleRise(name, rise(update, term)))
        rows, columns = adapter.shape(name)
        mean = _trace(term.u) * _trace(term.v) / (rows * columns)
        random += 0.5 * update.norm**2 * mean
    total = math.fsum(one.nats for one in modules)
    against = (adapter.manifest or {}).get("energy") == "curvature"
    return Rise(task, total, tuple(modules), random, curvature.record.rows, against)


def _task(task: str, curvature: Curvature) -> TaskCurvature:
    traces, ranks = {}, {}
    for name in curvature.names:
        term = curvature.kronecker(name)
        traces[name] = _trace(term.u) * _trace(term.v)
        ranks[name] = (_effective_rank(term.u), _effective_rank(term.v))
    total = math.fsum(traces.values())
    modules = []
    for name, trace in traces.items():
        dropped = curvature.record.dropped.get(name, (None, None))
        share = trace / total if total else 0.0
        modules.append(ModuleCurvature(name, share, *ranks[name], *dropped))
    record = curvature.record
    return TaskCurvature(task, total, record.coherence, record.rows, tuple(modules))


def _trace(factor: Tensor) -> float:
    return float(factor.double().square().sum())


def _effective_rank(factor: Tensor) -> float:
    """Of factor · factorᵀ, whose eigenvalues are the squares of the singular values."""
    return effective_rank(torch.linalg.svdvals(factor.double()).square())
