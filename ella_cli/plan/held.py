"""What the past takes during a task: W_past in either store, and curvature beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ella_cli.curvature import basis_columns, directions_of
from ella_cli.kernels.cost import Work, cheapest, rates_of, seconds
from ella_cli.kernels.form import FUSED, GRAM, TILED
from ella_cli.kernels.gram import KEPT_BYTES
from ella_cli.past.record import Store

_FLOAT, _HALF = 4, 2

# Where a large past is cut, spectra decide; these are SmolLM2's (docs/decisions/0012): 95 %
# are held by some 14 columns of G for mnli and 44 for dbpedia, 29 in the mean, and 10 of C lose no
# more than 45 of G.
_LEAST_OF_G, _C_OF_G = 29, 10 / 45


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


@dataclass(frozen=True)
class HeldCurvature:
    """The curvature of `tasks` tasks, cut as `ella accumulate` would once W_past is smaller.

    Attributes:
        ranks: eigenvectors of each G and of each C; fewer where a module is narrower.
        cut: whether fewer are kept than were measured.
        file: bytes of its tensors in wpast.safetensors.
        memory: bytes that the penalty keeps during a task.
        flops: of the penalty and its gradients, a step.
        turns: bytes at most that an optimizer keeps to step in its eigenvectors.
    """

    tasks: int
    ranks: tuple[int, int]
    cut: bool
    file: int
    memory: int
    flops: int
    turns: int


def held_curvature(
    shapes: Mapping[str, tuple[int, int]], lora_rank: int, tasks: int, rank: int, rows: int
) -> HeldCurvature:
    """
    Args:
        shapes: (M, N) of each adapted module.
        lora_rank: R of the task that is trained.
        tasks: how many tasks have measured theirs.
        rank: eigenvectors measured of each factor.
        rows: looked at to measure them.
    """
    room = sum(m * n for m, n in shapes.values()) * _FLOAT // _HALF
    bases = {
        (m, n): basis_columns(m * min(rank, m) + n * min(rank, n)) for m, n in set(shapes.values())
    }

    def sizes(of_g: int, of_c: int) -> tuple[int, int]:
        """Numbers of one task's factors, and of one of its directions."""
        factors = basis = 0
        for m, n in shapes.values():
            of_u, of_v = bases[m, n]
            factors += m * min(of_g, m) + n * min(of_c, n)
            basis += min(of_u, of_g, m) * min(of_v, of_c, n)
        return factors, basis

    count = directions_of(rows, *sizes(rank, rank))

    def numbers(of_g: int, of_c: int) -> tuple[int, int]:
        """Of all tasks: in factors and in directions."""
        factors, basis = sizes(of_g, of_c)
        kept = min(count, max(1, factors // max(basis, 1))) if of_g < rank else count
        return tasks * factors, tasks * kept * basis

    ranks = (rank, rank)
    if sum(numbers(*ranks)) > room:
        least = min(rank, _LEAST_OF_G)
        fewer = [(g, math.ceil(g * _C_OF_G)) for g in range(rank - 1, least - 1, -1)]
        fitting = (pair for pair in fewer if sum(numbers(*pair)) <= room)
        ranks = next(fitting, fewer[-1] if fewer else ranks)
    factors, directions = numbers(*ranks)
    # Every factor is read twice, each time for a product with R columns; directions with one.
    flops = 4 * lora_rank * factors + 4 * directions
    sides = [
        (n, min(n, tasks * kept))
        for shape in shapes.values()
        for n, kept in zip(shape, ranks, strict=True)
    ]
    turns = _FLOAT * sum((n + reflections) * reflections for n, reflections in sides)
    whole = factors + directions
    cut = ranks != (rank, rank)
    return HeldCurvature(tasks, ranks, cut, _HALF * whole, _FLOAT * whole, flops, turns)


def held_past(
    shapes: Mapping[str, tuple[int, int]],
    rank: int,
    tasks: int,
    *,
    store: Store,
    device: torch.device,
    plain: bool = True,
) -> Held:
    """
    Args:
        shapes: (M, N) of each adapted module.
        rank: R of one task.
        tasks: how many tasks the past holds.
        store: factored keeps R (M + N) numbers a task and module, dense M N a module.
        plain: whether a dense past's energy is W_past itself and no second matrix.
    """
    if not tasks:
        return Held(store, 0, 0, 0, "none", 0.0)
    past_rank = rank * tasks
    factors = sum(past_rank * (m + n) * _FLOAT for m, n in shapes.values())
    matrices = sum(m * n * _FLOAT for m, n in shapes.values()) * (1 if plain else 2)
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
