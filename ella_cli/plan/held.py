"""What W_past takes during a task, in either store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ella_cli.kernels.cost import Work, cheapest, rates_of, seconds
from ella_cli.kernels.form import FUSED, GRAM, TILED
from ella_cli.kernels.gram import KEPT_BYTES
from ella_cli.past.record import Store

_FLOAT = 4


@dataclass(frozen=True)
class Held:
    """The past of `tasks` tasks.

    Attributes:
        file: bytes of the tensors in wpast.safetensors.
        memory: bytes that the penalty keeps during a task.
        form: how the penalty is computed on most modules.
        seconds: expected time of the penalty, a step.
    """

    store: Store
    tasks: int
    file: int
    memory: int
    form: str
    seconds: float


def held_past(
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    tasks: int,
    *,
    store: Store,
    device: torch.device,
) -> Held:
    """
    Args:
        shapes: (M, N) of each adapted module.
        rank: R of one task.
        tasks: how many tasks the past holds.
        store: factored keeps R (M + N) numbers a task and module, dense M N a module.
    """
    if not tasks:
        return Held(store, 0, 0, 0, "none", 0.0)
    past_rank = rank * tasks
    factors = sum(past_rank * (m + n) * _FLOAT for m, n in shapes.values())
    matrices = sum(m * n * _FLOAT for m, n in shapes.values())
    among = [FUSED] if store == "dense" else [FUSED, TILED, GRAM]
    memory, time, forms = 0, 0.0, Counter[str]()
    for (m, n), alike in Counter(shapes.values()).items():
        work = Work(m, n, rank, past_rank, alike)
        form = cheapest(work, rates_of(device), among=among)
        memory += alike * _operand_bytes(form, m, n, past_rank, alike)
        time += alike * seconds(form, work, rates_of(device))
        forms[form] += alike
    file = matrices if store == "dense" else factors
    return Held(store, tasks, file, memory, forms.most_common(1)[0][0], time)


def _operand_bytes(form: str, rows: int, columns: int, past_rank: int, alike: int) -> int:
    if form == FUSED:
        return rows * columns * _FLOAT
    factors = past_rank * (rows + columns) * _FLOAT
    if form == TILED:
        return factors
    # The factors, once more side by side, and their pair products where those are kept.
    pairs = past_rank * (past_rank + 1) // 2 * (rows + columns) * _FLOAT
    return 2 * factors + (pairs if pairs * alike <= KEPT_BYTES else 0)
