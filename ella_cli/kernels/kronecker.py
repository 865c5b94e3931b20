"""One task's curvature at one module, as the tensors that are kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ella_cli.errors import ShapeError


@dataclass(frozen=True, eq=False)
class Kronecker:
    """One task's curvature at one module: G ⊗ C, and the module's part of the task's directions.

    G = U Uᵀ + u_floor · I, C = V Vᵀ + v_floor · I; direction d is Σ_ij R[d, i, j] u_i v_jᵀ here.
    Terms with directions and the same `task` are of one task: their moves are added up.

    Raises:
        ShapeError: U or V is no float matrix, R not in their columns, or they lie on different
            devices.
    """

    u: Tensor  # (M, K_G)
    v: Tensor  # (N, K_C)
    u_floor: float = 0.0
    v_floor: float = 0.0
    directions: Tensor | None = None  # R: (D, K_G' <= K_G, K_C' <= K_C)
    task: int = 0

    def __post_init__(self) -> None:
        for letter, factor in (("U", self.u), ("V", self.v)):
            if factor.ndim != 2 or not factor.is_floating_point():
                raise ShapeError(
                    f"{letter} is {factor.dtype} {tuple(factor.shape)}, not a float matrix",
                    hint="U is (M, K) with G = U Uᵀ + γ I, V is (N, K) with C = V Vᵀ + κ I",
                )
        if self.u.device != self.v.device:
            raise ShapeError(
                f"U is on {self.u.device}, V on {self.v.device}", hint="move one to the other"
            )
        r, columns = self.directions, (self.u.shape[1], self.v.shape[1])
        if r is not None and (
            r.ndim != 3
            or not r.is_floating_point()
            or r.device != self.u.device
            or any(inner > outer for inner, outer in zip(r.shape[1:], columns, strict=True))
        ):
            raise ShapeError(
                f"R is {r.dtype} {tuple(r.shape)} on {r.device}, for {columns} columns of U and V",
                hint="R is (D, K, K') in the leading columns of U and V, on their device",
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the updates it judges."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def trace(self) -> float:
        """The product tr G · tr C."""
        pairs = ((self.u, self.u_floor), (self.v, self.v_floor))
        g, c = (float(f.double().square().sum()) + floor * f.shape[0] for f, floor in pairs)
        return g * c

    def times(self, weight: float) -> Kronecker:
        """The cost times a weight of at least 0; the directions too, for U is their basis."""
        return replace(self, u=self.u * weight**0.5, u_floor=self.u_floor * weight)

    def to(self, device: torch.device) -> Kronecker:
        directions = None if self.directions is None else self.directions.to(device)
        return replace(self, u=self.u.to(device), v=self.v.to(device), directions=directions)
