"""Adds a finished update to the past, and shrinks one, without building s·BA."""

from __future__ import annotations

import torch
from torch import Tensor

from ella_cli.errors import SettingsError, ShapeError
from ella_cli.kernels.fused import block_rows
from ella_cli.kernels.operands import check_update

# A call adds to this much of W_past. Each waits for all of torch's threads: on 2 busy cores, rank
# 120 into 4096² took 1145 ms in calls of 1 MB, 406 of 4, 220 of 16, 162 at once.
CALL_BYTES = 1 << 26


def add_update(past: Tensor, b: Tensor, a: Tensor, scale: float) -> None:
    """W_past += scale · B A, in place and in f32, many rows at a time.

    Args:
        past: W_past, (M, N), f32 or f64, any layout.
        b: LoRA B, (M, R), any float dtype.
        a: LoRA A, (R, N), same device as `past`.
        scale: alpha / R (alpha / sqrt(R) with rsLoRA), unitless.

    Raises:
        ShapeError: B · A and W_past do not fit, or W_past is of a dtype that would round each sum.
    """
    check_update(b, a, past, "the update")
    if past.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"W_past is {past.dtype}; updates are summed in float32",
            hint="sum in float32 and round once, at the end",
        )
    rows, columns = past.shape
    with torch.no_grad():
        scaled_b = b.detach().to(past.dtype) * scale  # (M, R)
        a = a.detach().to(past.dtype)
        height = max(1, CALL_BYTES // max(1, columns * past.itemsize))
        for start in range(0, rows, height):
            past[start : start + height].addmm_(scaled_b[start : start + height], a)


def shrink(update: Tensor, past: Tensor, lam: float, *, inplace: bool = False) -> Tensor:
    """The update of least ½‖X − G‖² + ½λ‖X ⊙ W_past‖²: X = G / (1 + λ W_past²).

    Args:
        update: G, (M, N), any float dtype.
        past: W_past (its sign does not matter), (M, N), any float dtype, same device.
        lam: λ ≥ 0, in units of 1 / W_past².
        inplace: writes X over G.

    Returns:
        X, (M, N), in the dtype of `update`; `update` itself if `inplace`.

    Raises:
        ShapeError: G and W_past differ in shape.
        SettingsError: λ is negative or not finite.

    Source: ELLA, arXiv 2601.02232, Eq. 6; docs/method.md.
    """
    if update.ndim != 2 or update.shape != past.shape or update.device != past.device:
        raise ShapeError(
            f"update {tuple(update.shape)} on {update.device} does not fit "
            f"W_past {tuple(past.shape)} on {past.device}",
            hint="update and W_past must be of one module, on one device",
        )
    if not 0 <= lam < float("inf"):
        raise SettingsError(f"λ is {lam}", hint="give a finite λ of 0 or more")
    out = update if inplace else torch.empty_like(update)
    dtype = torch.float64 if torch.float64 in (update.dtype, past.dtype) else torch.float32
    height = block_rows(update.shape[0], update.shape[1], dtype)
    with torch.no_grad():
        for start in range(0, update.shape[0], height):
            block = slice(start, start + height)
            energy = past[block].to(dtype, copy=True).square_()  # (height, N)
            out[block] = update[block].to(dtype) / energy.mul_(lam).add_(1)
    return out
