"""The energy of a past: how much of it there is, in which modules, and on how few coordinates.

E = |W_past| per coordinate for the paper's energy; Σ|ΔW_i| or sqrt(Σ ΔW_i²) where the past was
accumulated so; and of some tasks more than of others where it weighs them. One module after the
other is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from torch import Tensor

from ella_cli.inspect.concentration import Bins, Concentration
from ella_cli.inspect.curvature import TaskCurvature, curvatures_of_tasks
from ella_cli.inspect.task_updates import separate_tasks, task_updates, why_not_separate
from ella_cli.inspect.tiles import row_blocks
from ella_cli.kernels import Factors
from ella_cli.past import Past


@dataclass(frozen=True)
class ModuleEnergy:
    """One module, or all together.

    `share` is of the whole past's ΣE². `cancelled` is 1 − Σ|Σ ΔW_i| / Σ Σ|ΔW_i|: the part of what
    the tasks wrote that their opposite signs took back; None where tasks are not known apart.
    """

    name: str
    rows: int
    columns: int
    share: float
    concentration: Concentration
    cancelled: float | None


@dataclass(frozen=True)
class EnergyReport:
    kind: str
    store: str
    tasks: tuple[str, ...]
    modules: tuple[ModuleEnergy, ...]
    total: ModuleEnergy
    why_no_cancelled: str = ""
    curvature: tuple[TaskCurvature, ...] = ()
    unmeasured: tuple[str, ...] = ()
    last: int | None = None
    decay: float | None = None
    quantiles: str = "modules: exact, by sorting; all together: logarithmic bins, within 0.1%"


def energy_of(past: Past) -> EnergyReport:
    """Memory is a few times the largest module, however many modules and tasks there are.

    Raises:
        PastError: the file is damaged.
    """
    bins = Bins()
    separate = bool(separate_tasks(past))
    # A dense past of another energy than |W_past| keeps Σ|ΔW_i| and the signed sum both.
    both = past.store == "dense" and past.energy == "abs" and not past.record.energy.weighs
    found: list[tuple[str, tuple[int, int], Concentration, tuple[float, float] | None]] = []
    for name in past.names:
        operand = past.operand(name)
        energy = energy_vector(operand)
        written: tuple[float, float] | None = None
        if separate:
            written = _kept_and_written(past, name)
        elif both:
            kept = sum(float(block.abs().sum()) for _, block in row_blocks(past.delta(name)))
            written = (kept, float(energy.sum(dtype=numpy.float64)))
        found.append((name, past.shape(name), bins.add(energy), written))
    total = bins.total()
    square = total.norm**2
    modules = tuple(
        ModuleEnergy(
            name=name,
            rows=shape[0],
            columns=shape[1],
            share=one.norm**2 / square if square > 0 else 0.0,
            concentration=one,
            cancelled=None if written is None else _cancelled(*written),
        )
        for name, shape, one, written in found
    )
    pairs = [written for *_, written in found if written is not None]
    kept, wrote = sum(k for k, _ in pairs), sum(w for _, w in pairs)
    known = bool(found) and len(pairs) == len(found)
    return EnergyReport(
        kind=past.energy,
        store=past.store,
        tasks=tuple(task.name for task in past.tasks),
        modules=modules,
        total=ModuleEnergy(
            "all modules",
            sum(m.rows for m in modules),
            sum(m.columns for m in modules),
            1.0 if square > 0 else 0.0,
            total,
            _cancelled(kept, wrote) if known else None,
        ),
        why_no_cancelled="" if known else why_not_separate(past),
        curvature=curvatures_of_tasks(past),
        unmeasured=past.unmeasured,
        last=past.record.energy.last,
        decay=past.record.energy.decay,
    )


def energy_vector(operand: Tensor | Factors) -> NDArray[numpy.float32]:
    """E of one module as one axis, in memory of our own: it is sorted in place."""
    rows, columns = operand.shape
    energy = numpy.empty((rows, columns), numpy.float32)
    for block, values in row_blocks(operand):
        energy[block] = values.abs_().numpy()
    return energy.reshape(-1)


def _kept_and_written(past: Past, name: str) -> tuple[float, float]:
    """Σ|Σ ΔW_i| and Σ Σ|ΔW_i|, from the same factors block by block."""
    updates = [update for update in task_updates(past, name) if update is not None]
    if not updates:
        return 0.0, 0.0
    kept = written = 0.0
    first, *others = (row_blocks(update) for update in updates)
    for _, total in first:
        written += float(total.abs().sum())
        for other in others:
            # One task's block at a time, however many tasks there are.
            matrix = next(other)[1]
            total += matrix
            written += float(matrix.abs_().sum())
        kept += float(total.abs_().sum())
    return kept, written


def _cancelled(kept: float, written: float) -> float:
    return 1 - kept / written if written > 0 else 0.0
