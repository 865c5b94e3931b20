"""How the tasks of one past meet each other, pair by pair: the same coordinates, and which sign."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.inspect.products import cosine, inner, norm, shared_energy
from ella_cli.inspect.task_updates import separate_tasks, task_updates, why_not_separate
from ella_cli.past import Past


@dataclass(frozen=True)
class Collisions:
    """Tasks × tasks over all modules; the diagonal is a task with itself.

    `collision[i][j]` is ‖ΔW_i ⊙ ΔW_j‖² over what random updates of their norms would give, module
    by module; `cosine[i][j]` that of the two updates as one long vector. None where a task is 0 or
    no module is common.
    """

    tasks: tuple[str, ...]
    collision: tuple[tuple[float | None, ...], ...]
    cosine: tuple[tuple[float | None, ...], ...]
    why_not: str = ""


def collisions_of(past: Past) -> Collisions:
    """Reads every module once; the work grows with the square of the number of tasks."""
    tasks = separate_tasks(past)
    if not tasks:
        return Collisions((), (), (), why_not_separate(past))
    count = len(tasks)
    penalty, chance, product = (torch.zeros(count, count, dtype=torch.float64) for _ in range(3))
    squares = torch.zeros(count, dtype=torch.float64)  # (K,) ‖ΔW_i‖²
    for name in past.names:
        updates = task_updates(past, name)
        norms = [0.0 if u is None else norm(u) for u in updates]
        squares += torch.tensor(norms, dtype=torch.float64).square()
        for i, one in enumerate(updates):
            for j, other in enumerate(updates[: i + 1]):
                if one is None or other is None:
                    continue
                penalty[i, j] += shared_energy(one, other)
                chance[i, j] += (norms[i] * norms[j]) ** 2 / math.prod(past.shape(name))
                product[i, j] += inner(one, other)
    lengths = squares.sqrt().tolist()
    return Collisions(
        tasks,
        _symmetric(penalty, lambda i, j, v: v / c if (c := float(chance[i, j])) > 0 else None),
        _symmetric(product, lambda i, j, v: cosine(v, lengths[i], lengths[j])),
    )


def _symmetric(
    lower: Tensor, of: Callable[[int, int, float], float | None]
) -> tuple[tuple[float | None, ...], ...]:
    """The whole matrix from its lower triangle, each entry passed through `of`."""
    rows = lower.tolist()
    pairs = [[(max(i, j), min(i, j)) for j in range(len(rows))] for i in range(len(rows))]
    return tuple(tuple(of(i, j, rows[i][j]) for i, j in row) for row in pairs)
