"""The past that a file is to hold next: which parts, from where, and their sizes in each store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ella_cli.adapter import Layer
from ella_cli.adapter.adapter import layers_in_order
from ella_cli.adapter.curvature import Curvature
from ella_cli.errors import PastError
from ella_cli.past.dense import DenseStore
from ella_cli.past.factored import Block, FactoredStore
from ella_cli.past.past import Past
from ella_cli.past.record import Base, BlockRecord, EnergyKind, PastTask

_F32_BYTES = 4


@dataclass(frozen=True, eq=False)
class Part:
    """One block with its tasks; `sign` is −1 where a dense sum gives it back."""

    tasks: tuple[PastTask, ...]
    block: Block
    record: BlockRecord
    sign: Literal[1, -1] = 1


@dataclass(frozen=True, eq=False)
class Change:
    """What is to be written.

    Attributes:
        tasks: all of them, afterwards.
        parts: all that a factored store will hold, or what is added to `origin`, in order.
        origin: the dense store to start from; None where all is known in parts.
        curvatures: of the tasks that have one.
        notes: what the user should know of it.
    """

    base: Base
    energy: EnergyKind
    tasks: tuple[PastTask, ...]
    parts: tuple[Part, ...]
    origin: DenseStore | None
    curvatures: tuple[Curvature, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """
        Raises:
            ShapeError, PastError: adapters and past disagree about a module's shape.
        """
        for name in self.layers:
            known = None if self.origin is None or name not in self._kept else self._kept[name]
            if known is not None and name in self._parts.names and known != self._parts.shape(name):
                raise PastError(
                    f"{name} is {self._parts.shape(name)} in the adapter, {known} in the past",
                    hint="they adapt different base models; compare them with `ella inspect`",
                )

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Every module of the past afterwards, in order, and what it is."""
        layers = {name: self._parts.layer(name) for name in self._parts.names}
        if self.origin is not None:
            layers |= {name: self.origin.layer(name) for name in self.origin.names}
        return {name: layers[name] for name in sorted(layers, key=layers_in_order)}

    def shape(self, name: str) -> tuple[int, int]:
        return self._kept[name] if name in self._kept else self._parts.shape(name)

    @property
    def factored_bytes(self) -> int:
        return sum(part.block.nbytes for part in self.parts)

    @property
    def dense_bytes(self) -> int:
        matrices = 1 if self.energy.is_plain else 2
        shapes = map(self.shape, self.layers)
        return sum(rows * columns * _F32_BYTES * matrices for rows, columns in shapes)

    @cached_property
    def _parts(self) -> FactoredStore:
        return FactoredStore([part.block for part in self.parts], EnergyKind())

    @cached_property
    def _kept(self) -> dict[str, tuple[int, int]]:
        if self.origin is None:
            return {}
        return {name: self.origin.shape(name) for name in self.origin.names}


def parts_of(past: Past) -> Iterable[Part]:
    """A factored past's own parts."""
    assert isinstance(past.contents, FactoredStore)
    tasks = iter(past.tasks)
    for block, record in zip(past.contents.blocks, past.record.blocks, strict=True):
        yield Part(tuple(next(tasks) for _ in range(block.tasks)), block, record)
