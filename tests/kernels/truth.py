"""Inputs of one module with the loss and both gradients in float64, by another route."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from ella_cli.kernels import Factors


@dataclass(frozen=True)
class Case:
    """One module's inputs, with the loss and both gradients from einsum in float64."""

    b: Tensor  # (M, R)
    a: Tensor  # (R, N)
    factors: Factors
    scale: float
    value: Tensor
    db: Tensor  # (M, R)
    da: Tensor  # (R, N)


def make_case(
    rows: int, columns: int, rank: int, past_rank: int, scale: float = 0.75, seed: int = 0
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    b, a = normal(rows, rank), normal(rank, columns)
    p, q = normal(rows, past_rank), normal(past_rank, columns)
    w = torch.einsum("mk,kn->mn", p.double(), q.double())  # (M, N)
    value, db, da = float64_truth(b, a, w, scale)
    return Case(b, a, Factors(p, q), scale, value, db, da)


def float64_truth(b: Tensor, a: Tensor, w: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss as Σ over (i, j), and its gradients by the formulas of METHOD.md §2, in float64."""
    b, a, energy = b.double(), a.double(), w.double().square()
    update = torch.einsum("mr,rn->mn", b, a)  # (M, N)
    value = scale**2 * torch.einsum("mn,mn,mn->", update, update, energy)
    d = 2 * scale**2 * update * energy  # (M, N)
    db = torch.einsum("mn,rn->mr", d, a)
    return value, db, torch.einsum("mr,mn->rn", b, d)


def relative(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖, both in float64."""
    difference = (found.detach().double().cpu() - truth.double()).norm()
    return float(difference / truth.double().norm())


def far_apart_rows(device: str = "cpu") -> Tensor:
    """A (3, 5) bf16 matrix whose last row begins 2³¹ elements behind its first.

    On the CPU only the pages that are written exist.
    """
    row = 1 << 30
    count = 2 * row + 5
    storage = (
        torch.frombuffer(mmap.mmap(-1, 2 * count), dtype=torch.bfloat16)
        if device == "cpu"
        else torch.zeros(count, dtype=torch.bfloat16, device=device)
    )
    return storage.as_strided((3, 5), (row, 1))
