"""One pass over a dense W_past, block of rows by block of rows: loss and both gradients.

With B̂ = s·B and, per block of rows, X = (B̂ A) ⊙ W:

    loss = Σ X²,   D = X ⊙ W,   ∂/∂B = 2s·D Aᵀ,   ∂/∂A = 2·Σ_blocks B̂ᵀ D

A block is as many rows as stay in a core's cache, so that W_past is read from memory once and no
(M, N) intermediate exists. The torch twin of `penalty_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ella_cli.kernels.operands import Factors, Past, compute_dtype

# Half of a 2 MB L2: the block of X beside the block of W it is multiplied with.
BLOCK_BYTES = 1 << 20


def fused_terms(b: Tensor, a: Tensor, past: Past, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """‖(s·BA) ⊙ W_past‖²_F, ∂/∂B (M, R) and ∂/∂A (R, N); extra memory is one block.

    With `Factors`, a block of W_past is rebuilt when it is needed (the tiled form).
    """
    dtype = compute_dtype(b, a)
    rows, columns = past.shape
    scaled_b = b.detach().to(dtype) * scale  # (M, R)
    a = a.detach().to(dtype).contiguous()  # (R, N)
    db = torch.empty_like(scaled_b)
    da = torch.zeros_like(a)
    value = torch.zeros((), dtype=torch.float64, device=b.device)
    height = block_rows(rows, columns, dtype)
    block = torch.empty(height, columns, dtype=dtype, device=b.device)  # (height, N)
    for start, w in _past_blocks(past, height, dtype):
        stop = start + w.shape[0]
        x = block[: stop - start]
        torch.mm(scaled_b[start:stop], a, out=x)
        x.mul_(w)
        flat = x.view(-1)
        value += torch.dot(flat, flat)
        x.mul_(w)
        torch.mm(x, a.T, out=db[start:stop])
        da.addmm_(scaled_b[start:stop].T, x)
    return value.to(dtype), db.mul_(2 * scale), da.mul_(2)


def block_rows(rows: int, columns: int, dtype: torch.dtype) -> int:
    return max(1, min(rows, BLOCK_BYTES // max(1, columns * dtype.itemsize)))


def _past_blocks(past: Past, height: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(first row, W_past of the next `height` rows in `dtype`)."""
    rows = past.shape[0]
    if isinstance(past, Factors):
        p, q = past.p.to(dtype), past.q.to(dtype).contiguous()
        block = torch.empty(height, q.shape[1], dtype=dtype, device=q.device)  # (height, N)
        for start in range(0, rows, height):
            part = p[start : start + height]
            yield start, torch.mm(part, q, out=block[: part.shape[0]])
        return
    for start in range(0, rows, height):
        yield start, past[start : start + height].to(dtype)
