"""Inner products, norms and sums of low-rank updates, in f64, without multiplying them out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ella_cli.adapter import Update
from ella_cli.kernels import Factors, penalty


def as_factors(update: Update) -> Factors:
    """ΔW as P Q in f64, the scale within P."""
    return Factors(update.b.double() * update.scale, update.a.double())


def total(updates: Sequence[Factors]) -> Factors:
    """Σ ΔW_i as one pair of factors; its rank is the sum of theirs."""
    return Factors(
        torch.cat([u.p for u in updates], dim=1),  # (M, ΣR)
        torch.cat([u.q for u in updates]),  # (ΣR, N)
    )


def inner(x: Factors, y: Tensor | Factors) -> float:
    """⟨X, Y⟩_F."""
    if isinstance(y, Factors):
        return float(((x.p.double().T @ y.p.double()) * (x.q.double() @ y.q.double().T)).sum())
    return float((x.p.double() * (y.double() @ x.q.double().T)).sum())


def norm(x: Factors) -> float:
    """‖X‖_F by the triangles of P and Qᵀ: no cancellation, also where X is a difference."""
    left = torch.linalg.qr(x.p.double())[1]
    right = torch.linalg.qr(x.q.double().T)[1]
    return float(torch.linalg.matrix_norm(left @ right.T))


def shared_energy(x: Factors, y: Tensor | Factors) -> float:
    """‖X ⊙ Y‖²_F, the penalty of X against the past Y."""
    other = Factors(y.p.double(), y.q.double()) if isinstance(y, Factors) else y.double()
    return float(penalty(x.p.double(), x.q.double(), other))


def cosine(product: float, one: float, other: float) -> float | None:
    """None where either is zero and has no direction."""
    lengths = one * other
    if lengths == 0 or not math.isfinite(lengths):
        return None
    return max(-1.0, min(1.0, product / lengths))
