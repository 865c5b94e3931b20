"""The past as one matrix per module, and a second for the energy where that is another sum."""

from __future__ import annotations

import hashlib

from torch import Tensor

from ella_cli.adapter import Layer
from ella_cli.adapter.adapter import layers_in_order
from ella_cli.adapter.tensor_file import TensorFile, bytes_of
from ella_cli.errors import PastError
from ella_cli.past.curvatures import other_entries
from ella_cli.past.record import Record

DELTA, ENERGY = "delta", "energy"


class DenseStore:
    """Matrices in a memory-mapped file, each checked against its checksum at its first use."""

    def __init__(self, file: TensorFile, record: Record) -> None:
        """
        Raises:
            PastError: tensors and record do not belong together.
        """
        self.file = file
        self._record = record
        self._verified: set[str] = set()
        self._has_energy = not record.energy.is_plain
        self._entries = other_entries(file)
        deltas = {key.removesuffix(f".{DELTA}") for key in self._entries if key.endswith(DELTA)}
        self.names = tuple(sorted(deltas, key=layers_in_order))
        parts = (DELTA, ENERGY) if self._has_energy else (DELTA,)
        expected = {f"{name}.{part}" for name in self.names for part in parts}
        self._check(expected)

    @property
    def is_rounded(self) -> bool:
        """Whether it is a copy in bf16."""
        return any(entry.dtype != "F32" for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, int]:
        rows, columns = self.file.entries[f"{name}.{DELTA}"].shape
        return rows, columns

    def layer(self, name: str) -> Layer:
        return self._record.layers.get(name, Layer())

    def operand(self, name: str) -> Tensor:
        """What the penalty is computed from: a view of the file, (M, N), f32 or bf16."""
        return self._map(f"{name}.{ENERGY if self._has_energy else DELTA}")

    def delta(self, name: str) -> Tensor:
        """Σ ΔW_i, (M, N) f32; a view of the file where that is f32."""
        return self._map(f"{name}.{DELTA}").float()

    def verify(self) -> None:
        """
        Raises:
            PastError: a tensor is not what its checksum says, or not finite.
        """
        for key in self._entries:
            self._map(key)

    def expect(self, key: str, checksum: str) -> None:
        """
        Raises:
            PastError: the tensor `key`, of this SHA-256, is not what the file's record says.
        """
        expected = self._record.checksums[key]
        if checksum != expected:
            raise PastError(
                f"{self.file.path}: the tensor {key} does not match its checksum {expected[:12]}…",
                hint="the file is damaged; restore it, or accumulate the adapters again",
            )

    def _map(self, key: str) -> Tensor:
        tensor = self.file.map(key)
        if key not in self._verified:
            self.expect(key, hashlib.sha256(bytes_of(tensor)).hexdigest())
            self.file.check_finite(key, tensor)
            self._verified.add(key)
        return tensor

    def _check(self, expected: set[str]) -> None:
        entries = self._entries
        wrong = sorted(expected ^ entries.keys() | expected ^ self._record.checksums.keys())
        wrong += [
            key
            for key, entry in entries.items()
            if len(entry.shape) != 2 or not entry.nbytes or entry.dtype not in ("F32", "BF16")
        ]
        wrong += [
            f"{name}.{ENERGY}"
            for name in self.names
            if self._has_energy
            and not wrong
            and entries[f"{name}.{ENERGY}"].shape != entries[f"{name}.{DELTA}"].shape
        ]
        if wrong:
            raise PastError(
                f"{self.file.path}: the tensor {wrong[0][:100]} is not what a dense past holds",
                hint="the file was changed by hand; restore it, or accumulate the adapters again",
            )
