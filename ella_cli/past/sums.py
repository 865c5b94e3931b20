"""The sums of one module: ΔW of every part added to what is there, and to its energy.

Made a block of rows at a time: a block is read, checked, summed, hashed and written while it is in
a core's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ella_cli.adapter import Update
from ella_cli.adapter.adapter import read_update
from ella_cli.adapter.tensor_file import bytes_of
from ella_cli.errors import PastError
from ella_cli.kernels import add_update, shrink
from ella_cli.past.change import Change, Part
from ella_cli.past.dense import DELTA, ENERGY, DenseStore
from ella_cli.past.factored import dense
from ella_cli.past.record import PastTask


class ModuleSums:
    """Fills one module's blocks of rows, from the first to the last.

    Attributes:
        squares: of the tasks that were shrunk, ‖X‖²_F over the rows so far.
    """

    def __init__(self, change: Change, name: str) -> None:
        """
        Raises:
            PastError: the store that is added to is of bf16.
        """
        self.squares: dict[PastTask, float] = {}
        self._energy = change.energy
        store = change.origin
        there = store is not None and name in store.names
        self._origin = _Origin(store, name) if store is not None and there else None
        # One a part, None where it leaves the module alone.
        self._updates = [(part, _read(part, name)) for part in change.parts]
        shrunk = any(t.shrink is not None for part in change.parts for t in part.tasks)
        self._is_one_sum = change.energy.is_plain and not shrunk
        if self._is_one_sum:
            self._b, self._a = _side_by_side(self._updates, change.shape(name))

    def fill(self, start: int, matrices: Tensor) -> None:
        """
        Args:
            start: the first row of the block.
            matrices: rows of W_past, (1, rows, N) f32, or of W_past and E, (2, rows, N);
                overwritten.
        """
        if self._origin is None:
            matrices.zero_()
        else:
            self._origin.read(start, matrices)
        rows = slice(start, start + matrices.shape[1])
        if self._is_one_sum:
            add_update(matrices[0], self._b[rows], self._a, 1.0)
            return
        delta, energy = matrices[0], matrices[-1]
        for part, update in self._updates:
            change = None
            if update is not None:
                # Shrunk by the energy that its own training would have met, before it ages.
                slab = Update(update.b[rows], update.a, update.scale)
                change = self._shrunk(dense(slab), energy, part.tasks[-1])  # (rows, N) f32
            if not self._energy.is_plain:
                self._age(energy, part)
            if change is not None:
                self._add(delta, energy, part, change)

    def finish(self) -> None:
        """After the last block.

        Raises:
            PastError: the store that was added to is damaged.
        """
        if self._origin is not None:
            self._origin.check()

    def _age(self, energy: Tensor, part: Part) -> None:
        """Every task since makes the energy of what is there decay once."""
        decay = self._energy.decay
        if decay is not None and part.sign > 0:
            energy.mul_(decay)

    def _shrunk(self, change: Tensor, energy: Tensor, task: PastTask) -> Tensor:
        if task.shrink is None:
            return change
        change = shrink(change, energy, task.shrink, inplace=True)
        square = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
        self.squares[task] = self.squares.get(task, 0.0) + square
        return change

    def _add(self, delta: Tensor, energy: Tensor, part: Part, change: Tensor) -> None:
        delta.add_(change, alpha=part.sign)
        kind = self._energy
        if kind.is_plain:
            return
        if kind.kind == "sum":
            energy.add_(change, alpha=part.sign)
        elif kind.kind == "abs":
            energy.add_(change.abs_(), alpha=part.sign).clamp_(min=0)
        else:
            # Nothing is taken out of such an energy: a root is too coarse to give it back.
            energy.square_().add_(change.square_()).sqrt_()


class _Origin:
    """What a dense store holds of one module, hashed as it is read."""

    def __init__(self, store: DenseStore, name: str) -> None:
        self._store = store
        keys = [f"{name}.{DELTA}", f"{name}.{ENERGY}"]
        self._checksums = {k: hashlib.sha256() for k in keys if k in store.file.entries}
        if any(store.file.entries[key].dtype != "F32" for key in self._checksums):
            raise PastError(
                f"{store.file.path} is a bf16 copy; adding to it would round again each time",
                hint="accumulate into the f32 file, and export a bf16 copy from it",
            )

    def read(self, start: int, matrices: Tensor) -> None:
        for matrix, (key, checksum) in zip(
            matrices.unbind(0), self._checksums.items(), strict=True
        ):
            skip = start * matrix.shape[1] * matrix.itemsize
            self._store.file.read_into(key, matrix, skip)
            checksum.update(bytes_of(matrix))

    def check(self) -> None:
        for key, checksum in self._checksums.items():
            self._store.expect(key, checksum.hexdigest())


def _read(part: Part, name: str) -> Update | None:
    source = part.block.sources.get(name)
    return None if source is None else read_update(part.block.file, source)


def _side_by_side(
    updates: Sequence[tuple[Part, Update | None]], shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """All updates as one of rank Σ R: B (M, Σ R) with scales and signs, and A (Σ R, N)."""
    own = [(part.sign, update) for part, update in updates if update is not None]
    bs = [update.b * (update.scale * sign) for sign, update in own]
    as_ = [update.a for _, update in own]
    rows, columns = shape
    return (
        torch.cat([torch.empty(rows, 0), *bs], dim=1),
        torch.cat([torch.empty(0, columns), *as_], dim=0),
    )
