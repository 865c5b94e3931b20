"""What the penalty is computed from: LoRA factors, a past dense or in factors, and their checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Factors:
    """W_past = P Q, never multiplied out: the past in the form LoRA makes it.

    Raises:
        ShapeError: P and Q are not matrices that multiply, or lie on different devices.
    """

    p: Tensor  # (M, R_past): every past B times its scale, side by side
    q: Tensor  # (R_past, N): every past A, stacked

    def __post_init__(self) -> None:
        if self.p.ndim != 2 or self.q.ndim != 2 or self.p.shape[1] != self.q.shape[0]:
            raise ShapeError(
                f"P {tuple(self.p.shape)} · Q {tuple(self.q.shape)} is no product",
                hint="P holds past B's side by side, (M, R_past); Q past A's stacked, (R_past, N)",
            )
        if self.p.device != self.q.device:
            raise ShapeError(
                f"P is on {self.p.device}, Q on {self.q.device}", hint="move one to the other"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.p.shape[0], self.q.shape[1]

    @property
    def rank(self) -> int:
        return self.p.shape[1]

    @property
    def device(self) -> torch.device:
        return self.p.device

    def dense(self) -> Tensor:
        """W_past in f32 (f64 if a factor is), (M, N)."""
        dtype = compute_dtype(self.p, self.q)
        return self.p.to(dtype) @ self.q.to(dtype)


Past = Tensor | Factors


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums are made in: f32, or f64 as soon as one input is f64."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_past(past: Past, name: str) -> None:
    if isinstance(past, Tensor) and (past.ndim != 2 or not past.is_floating_point()):
        raise ShapeError(
            f"W_past of {name} is {past.dtype} {tuple(past.shape)}, not a float matrix",
            hint="give a dense (M, N) float tensor or Factors(p, q)",
        )


def check_update(b: Tensor, a: Tensor, past: Past, name: str) -> None:
    """
    Raises:
        ShapeError: B · A and W_past do not fit, or lie on different devices.
    """
    rows, columns = past.shape
    fits = b.ndim == a.ndim == 2 and b.shape[1] == a.shape[0]
    if not fits or (b.shape[0], a.shape[1]) != (rows, columns):
        raise ShapeError(
            f"{name}: B {tuple(b.shape)} · A {tuple(a.shape)} does not fit "
            f"W_past {(rows, columns)}",
            hint="adapter and W_past must share a base model; compare them with `ella inspect`",
        )
    if not b.device == a.device == past.device:
        raise ShapeError(
            f"{name}: B is on {b.device}, A on {a.device}, W_past on {past.device}",
            hint="move all three to one device",
        )
