"""The penalty as it is written, by autograd: the truth the other forms are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from ella_cli.kernels.operands import Factors, Past, compute_dtype


def eager_terms(b: Tensor, a: Tensor, past: Past, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """‖(s·BA) ⊙ W_past‖²_F, ∂/∂B (M, R) and ∂/∂A (R, N), building several (M, N) matrices."""
    dtype = compute_dtype(b, a)
    dense = past.dense() if isinstance(past, Factors) else past
    with torch.enable_grad():
        b = b.detach().to(dtype, copy=True).requires_grad_()
        a = a.detach().to(dtype, copy=True).requires_grad_()
        value = (scale * (b @ a) * dense.detach().to(dtype)).square().sum()
        db, da = torch.autograd.grad(value, (b, a))
    return value.detach(), db, da
