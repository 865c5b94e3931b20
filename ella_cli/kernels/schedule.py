"""How one launch divides the modules of a model: items of work, their slots, and the sums of slots.

Tables of integers only; made once for a task, read by the kernels. The columns are named in
`block_kernel` and `reduce_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Neighbouring results one program of the reduction adds up, and slots it reads at a time.
SUM_COLUMNS = 256
SUM_SLOTS = 8

# Rows of an item: enough that writing ∂/∂A costs little beside reading W_past, few enough that
# every processor finds several items.
LONGEST_ITEM = 1024
_SHORTEST_ITEM = 128
_ITEMS_PER_PROCESSOR = 8


# What the slots of one launch may take; the next one uses it again. ∂/∂B has one a strip, and
# strips narrow as ranks grow: at R = 128 those of a model of 8B would take 11 GB together.
MOST_WORKSPACE_BYTES = 1 << 30


@dataclass(frozen=True)
class Blocks:
    """Tile sizes of a kernel, and how many warps and pipeline stages it is compiled for."""

    rows: int
    columns: int
    rank: int
    past_rank: int
    split: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Schedule:
    """Tables of one launch and of the reduction after it.

    `out` is one f32 buffer: values (modules,), then ∂/∂B (M, R) and ∂/∂A (R, N) of each module,
    at `db_offsets` and `da_offsets`.
    """

    items: Tensor  # (items, 7) int64
    sums: Tensor  # (sums, 5) int64
    factors: Tensor  # (sums,) f32
    workspace_size: int
    out_size: int
    db_offsets: tuple[int, ...]
    da_offsets: tuple[int, ...]


# Rank 16 (and below), and 32 in tf32: the fastest of those tried on an H100 that keep within 99 KB
# of shared memory, which smaller parts have (docs/results/h100.md); 64 columns a warp, even where a
# few registers spill. The others: the widest columns that spill little when compiled ahead of time.
# Wide columns matter, for each strip of them writes ∂/∂B once: 8 R / (bytes of an element ·
# columns) of the traffic of W_past.
_TENSOR_CORES = {
    16: Blocks(16, 256, 16, 16, 4, 4, 3),
    32: Blocks(16, 128, 32, 16, 2, 2, 2),
    64: Blocks(16, 64, 64, 16, 4, 8, 2),
    128: Blocks(16, 32, 128, 16, 2, 8, 2),
    256: Blocks(16, 32, 256, 16, 1, 8, 2),
}
_FLOAT32_UNITS = {
    16: Blocks(16, 128, 16, 16, 2, 2, 3),
    32: Blocks(16, 64, 32, 16, 4, 4, 2),
    64: Blocks(16, 64, 64, 16, 4, 8, 2),
    128: Blocks(16, 32, 128, 16, 2, 8, 2),
    256: Blocks(16, 16, 256, 16, 1, 8, 1),
}
# The tiled kernel holds a block of P and of Q besides.
_IF_TILED = {
    ("tf32", 16): Blocks(16, 256, 16, 16, 4, 4, 1),
    ("tf32", 32): Blocks(16, 128, 32, 16, 8, 8, 1),
    ("tf32", 256): Blocks(16, 16, 256, 16, 1, 8, 1),
    ("ieee", 16): Blocks(16, 128, 16, 16, 2, 2, 1),
}
# Triton up to 3.7, which comes with torch 2.13 for CUDA, sums no fewer products than 16.
SHORTEST_RANK = 16
LARGEST_RANK = 256


def padded_rank(rank: int) -> int:
    """The power of two a kernel is compiled for."""
    assert 0 < rank <= LARGEST_RANK, rank
    return max(SHORTEST_RANK, 1 << (rank - 1).bit_length())


def blocks_for(rank: int, precision: str, *, factored: bool) -> Blocks:
    """The tiles of the fused kernel, or (`factored`) of the tiled one."""
    padded = padded_rank(rank)
    blocks = (_TENSOR_CORES if precision == "tf32" else _FLOAT32_UNITS)[padded]
    return _IF_TILED.get((precision, padded), blocks) if factored else blocks


def launches_of(shapes: Sequence[tuple[int, int, int]], blocks: Blocks) -> list[list[int]]:
    """Divides modules of shapes (M, N, R) into launches by what their slots take, in order."""
    launches: list[list[int]] = []
    left = 0
    for module, (rows, columns, rank) in enumerate(shapes):
        strips, parts = math.ceil(columns / blocks.columns), math.ceil(rows / _SHORTEST_ITEM)
        size = 4 * rank * (strips * rows + parts * columns)
        if size > left or not launches:
            launches.append([])
            left = MOST_WORKSPACE_BYTES
        launches[-1].append(module)
        left -= size
    return launches


def make_schedule(
    shapes: Sequence[tuple[int, int, int]],
    scales: Sequence[float],
    blocks: Blocks,
    processors: int,
    device: torch.device,
) -> Schedule:
    """Divides modules of shapes (M, N, R) for a device of so many multiprocessors."""
    height = _item_rows([shape[:2] for shape in shapes], blocks, processors)
    items: list[list[int]] = []
    sums: list[Tensor] = []
    factors: list[Tensor] = []
    db_offsets, da_offsets = [], []
    workspace, out = 0, len(shapes)

    def add_sum(source: int, slots: int, stride: int, to: int, count: int, factor: float) -> None:
        starts = torch.arange(0, count, SUM_COLUMNS)
        table = torch.empty(starts.numel(), 5, dtype=torch.int64)
        table[:, 0] = source + starts
        table[:, 1] = slots
        table[:, 2] = stride
        table[:, 3] = to + starts
        table[:, 4] = (count - starts).clamp(max=SUM_COLUMNS)
        sums.append(table)
        factors.append(torch.full((starts.numel(),), factor, dtype=torch.float32))

    for module, ((rows, columns, rank), scale) in enumerate(zip(shapes, scales, strict=True)):
        strips, parts = math.ceil(columns / blocks.columns), math.ceil(rows / height)
        db_base = workspace
        da_base = db_base + strips * rows * rank
        value_base = da_base + parts * rank * columns
        workspace = value_base + strips * parts
        items += [
            [
                module,
                strip * blocks.columns,
                part * height,
                min(rows, (part + 1) * height),
                db_base + strip * rows * rank,
                da_base + part * rank * columns,
                value_base + part * strips + strip,
            ]
            for part in range(parts)
            for strip in range(strips)
        ]
        db_offsets.append(out)
        da_offsets.append(out + rows * rank)
        add_sum(value_base, strips * parts, 1, module, 1, scale**2)
        add_sum(db_base, strips, rows * rank, out, rows * rank, 2 * scale**2)
        add_sum(da_base, parts, rank * columns, da_offsets[-1], rank * columns, 2 * scale**2)
        out += rank * (rows + columns)

    return Schedule(
        torch.tensor(items, dtype=torch.int64).to(device),
        torch.cat(sums).to(device),
        torch.cat(factors).to(device),
        workspace,
        out,
        tuple(db_offsets),
        tuple(da_offsets),
    )


def _item_rows(shapes: Sequence[tuple[int, int]], blocks: Blocks, processors: int) -> int:
    height = LONGEST_ITEM
    while height > max(_SHORTEST_ITEM, blocks.rows):
        items = sum(
            math.ceil(columns / blocks.columns) * math.ceil(rows / height)
            for rows, columns in shapes
        )
        if items >= _ITEMS_PER_PROCESSOR * processors:
            break
        height //= 2
    return height
