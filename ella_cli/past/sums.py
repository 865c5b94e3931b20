"""The sums of one module: ΔW of every part added to what is there, and to its energy."""

from __future__ import annotations

import torch
from torch import Tensor

from ella_cli.adapter import Update
from ella_cli.adapter.adapter import read_update
from ella_cli.errors import PastError
from ella_cli.kernels import add_update, shrink
from ella_cli.past.change import Change, Part
from ella_cli.past.dense import DELTA, ENERGY
from ella_cli.past.factored import dense
from ella_cli.past.record import PastTask


class ModuleSums:
    """Fills matrices for one module after another.

    Attributes:
        squares: of the tasks that were shrunk, ‖X‖²_F over the modules so far.
    """

    def __init__(self, change: Change) -> None:
        self._change = change
        self.squares: dict[PastTask, float] = {}
        fresh = [part for part in change.parts if part.sign > 0]
        self._is_one_sum = change.energy.is_plain and not any(
            task.shrink is not None for part in fresh for task in part.tasks
        )

    def fill(self, name: str, matrices: Tensor) -> None:
        """
        Args:
            name: the module.
            matrices: (1, M, N) f32 for W_past, or (2, M, N) for W_past and E; overwritten.

        Raises:
            PastError: the store that is added to is damaged or of bf16.
        """
        self._start(name, matrices)
        parts = [part for part in self._change.parts if name in part.block.sources]
        if self._is_one_sum:
            _add_all(matrices[0], [(_read(part, name), part.sign) for part in parts])
            return
        delta, energy = matrices[0], matrices[-1]
        for part in self._change.parts:
            if not self._change.energy.is_plain:
                self._age(energy, part)
            if name in part.block.sources:
                self._add(delta, energy, part, _read(part, name))

    def _start(self, name: str, matrices: Tensor) -> None:
        origin = self._change.origin
        if origin is None or name not in origin.names:
            matrices.zero_()
            return
        for matrix, kind in zip(matrices.unbind(0), (DELTA, ENERGY), strict=False):
            key = f"{name}.{kind}"
            if origin.file.entries[key].dtype != "F32":
                raise PastError(
                    f"{origin.file.path} is a bf16 copy; adding to it would round again each time",
                    hint="accumulate into the f32 file, and export a bf16 copy from it",
                )
            origin.file.read_into(key, matrix)
            origin.check(key, matrix)

    def _age(self, energy: Tensor, part: Part) -> None:
        """Every task since makes the energy of what is there decay once."""
        decay = self._change.energy.decay
        if decay is not None and part.sign > 0:
            energy.mul_(decay)

    def _add(self, delta: Tensor, energy: Tensor, part: Part, update: Update) -> None:
        change = dense(update)  # (M, N) f32
        task = part.tasks[-1]
        if task.shrink is not None:
            change = shrink(change, energy, task.shrink, inplace=True)
            square = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
            self.squares[task] = self.squares.get(task, 0.0) + square
        delta.add_(change, alpha=part.sign)
        kind = self._change.energy
        if kind.is_plain:
            return
        if kind.kind == "sum":
            energy.add_(change, alpha=part.sign)
        elif kind.kind == "abs":
            energy.add_(change.abs_(), alpha=part.sign).clamp_(min=0)
        else:
            energy.square_().add_(change.square_(), alpha=part.sign).clamp_(min=0).sqrt_()


def _read(part: Part, name: str) -> Update:
    return read_update(part.block.file, part.block.sources[name])


def _add_all(delta: Tensor, updates: list[tuple[Update, int]]) -> None:
    """One product of rank Σ R instead of one pass over (M, N) per task."""
    if not updates:
        return
    b = torch.cat([update.b * (update.scale * sign) for update, sign in updates], dim=1)
    a = torch.cat([update.a for update, _ in updates], dim=0)
    add_update(delta, b, a, 1.0)
