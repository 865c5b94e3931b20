"""A module's past in blocks of rows: no more than a few blocks are in memory beside the file."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ella_cli.kernels import Factors

# 2^20 elements: 8 MB in f64, so that the few copies of a block stay far below a module.
_BLOCK_ELEMENTS = 1 << 20
_ROUNDING = 1e-6


def row_blocks(past: Tensor | Factors) -> Iterator[tuple[slice, Tensor]]:
    """Rows of W_past in f64, each block (rows, N) in memory of its own, free to be overwritten."""
    rows, columns = past.shape
    stride = max(1, _BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, stride):
        block = slice(start, min(rows, start + stride))
        if isinstance(past, Factors):
            yield block, past.p[block].double() @ past.q.double()  # (rows, N)
        else:
            yield block, past[block].to(torch.float64, copy=True)  # (rows, N)


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of the space that the columns span, f64, (M, rank).

    Directions below a millionth of the largest are rounding of the f32 they were stored in.
    """
    if columns.numel() == 0:
        return columns.double()
    left, values, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    rank = int((values > _ROUNDING * float(values[0])).sum()) if float(values[0]) > 0 else 0
    basis: Tensor = left[:, :rank]  # (M, rank)
    return basis
