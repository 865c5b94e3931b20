"""The past of a task sequence: one object over two exact representations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ella_cli.adapter import Adapter, Layer
from ella_cli.adapter.curvature import Curvature
from ella_cli.adapter.curvature_file import has_curvature, read_curvature
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.config import Energy
from ella_cli.errors import PastError
from ella_cli.files import behind_links
from ella_cli.kernels import Factors, Kronecker
from ella_cli.past.curvatures import curvatures_of, measured_anew
from ella_cli.past.dense import DenseStore
from ella_cli.past.factored import Block, FactoredStore, factored_store
from ella_cli.past.record import Base, EnergyKind, PastTask, Record, Store
from ella_cli.past.record import read_record as _read_record
from ella_cli.past.task import base_of, block_record, task_of


@dataclass(frozen=True, eq=False)
class Past:
    """W_past = Σ ΔW_i and its energy, per module; tensors are read when asked for.

    A module that no task adapted is not in `names`. ΔW is (out, in) throughout; only folding into
    weights turns it (`layer` says what it is added to).
    """

    record: Record
    path: Path | None  # None for one that only adapters hold
    contents: FactoredStore | DenseStore = field(repr=False)
    curvatures: tuple[Curvature, ...] = field(default=(), repr=False)

    def folder_of(self, task: PastTask) -> Path | None:
        """Where a task's adapter lay when it was added; None where that is not told."""
        if self.path is None or not task.folder:
            return None
        # Recorded from where the file itself lies, whatever link it was opened by.
        return behind_links(self.path).parent / task.folder

    @classmethod
    def of(
        cls,
        adapters: Sequence[Adapter],
        *,
        energy: Energy | None = None,
        last: int | None = None,
        decay: float | None = None,
    ) -> Past:
        """The past of adapters that lie on disk, oldest first, without writing a file.

        Args:
            energy: None for the one that a new file of these adapters would have.

        Raises:
            ShapeError: two adapters disagree about a module's shape.
            NonFiniteError: a factor holds NaN or infinity.
        """
        kind = EnergyKind.asked(energy or usual_energy(adapters), last, decay)
        found = {adapter.digest: read_curvature(adapter) for adapter in adapters}
        curvatures = tuple(one for one in found.values() if one is not None)
        record = Record(
            store="factored",
            energy=kind,
            base=base_of(adapters),
            tasks=tuple(task_of(adapter) for adapter in adapters),
            blocks=tuple(block_record(adapter) for adapter in adapters),
            curvature=tuple(one.record for one in curvatures),
        )
        blocks = [Block(adapter.file, adapter.sources) for adapter in adapters]
        return cls(record.sealed(), None, FactoredStore(blocks, kind), curvatures)

    @property
    def store(self) -> Store:
        return self.record.store

    @property
    def energy(self) -> Energy:
        return self.record.energy.kind

    @property
    def coordinates(self) -> Energy:
        """The kind of the energy per coordinate, which is there beside any curvature."""
        return "sum" if self.energy == "curvature" else self.energy

    @property
    def base(self) -> Base:
        return self.record.base

    @property
    def tasks(self) -> tuple[PastTask, ...]:
        return self.record.tasks

    @property
    def names(self) -> tuple[str, ...]:
        """The modules, layers in order."""
        return self.contents.names

    @property
    def digest(self) -> str:
        """SHA-256, in hex, over contents and kind of energy."""
        return self.record.digest

    def shape(self, name: str) -> tuple[int, int]:
        return self.contents.shape(name)

    def layer(self, name: str) -> Layer:
        return self.contents.layer(name)

    def operand(self, name: str) -> Tensor | Factors:
        """What `kernels.penalty` takes as the past of one module.

        Returns:
            Factors in f32, or a matrix (M, N): a view of the file, f32 or bf16, or E in f32.

        Raises:
            PastError: the file is damaged.
        """
        return self.contents.operand(name)

    def delta(self, name: str) -> Tensor:
        """The signed sum Σ ΔW_i of all tasks, (M, N) f32: what is folded into the weights.

        Raises:
            PastError: the file is damaged.
        """
        return self.contents.delta(name)

    def first(self, count: int) -> Past | None:
        """The past as it was after its first `count` tasks; None where they are not known apart."""
        if not isinstance(self.contents, FactoredStore):
            return None
        blocks, held = self.contents.blocks, 0
        for index, block in enumerate(blocks):
            if held == count:
                blocks = blocks[:index]
                break
            held += block.tasks
        if held != count:
            return None
        known = {task.digest for task in self.tasks[:count]}
        curvatures = tuple(one for one in self.curvatures if one.record.adapter in known)
        record = replace(
            self.record,
            tasks=self.tasks[:count],
            blocks=self.record.blocks[: len(blocks)],
            curvature=tuple(one.record for one in curvatures),
        )
        store = FactoredStore(blocks, self.record.energy)
        return Past(record.sealed(), None, store, curvatures)

    def lacks(self, adapter: Adapter) -> bool:
        """Whether the adapter is not in, or its curvature was measured since.

        Raises:
            AdapterError: its curvature is damaged.
        """
        if adapter.digest not in {task.digest for task in self.tasks}:
            return True
        held = {one.record.adapter: one for one in self.curvatures}
        return measured_anew(held.get(adapter.digest), read_curvature(adapter))

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The tasks whose curvature is not known, by name."""
        known = {one.record.adapter for one in self.curvatures}
        return tuple(task.name for task in self.tasks if task.digest not in known)

    def curvature(self, name: str) -> list[Kronecker]:
        """One module's curvature, f32: a term a task that has one and counts for the energy.

        Raises:
            AdapterError: the file is damaged.
        """
        return [
            one.kronecker(name, number).times(weight)
            for number, (one, weight) in enumerate(self.weighed_curvatures)
            if weight and name in one.keys
        ]

    @property
    def weighed_curvatures(self) -> tuple[tuple[Curvature, float], ...]:
        """Each curvature and how much it counts for the energy, 0 beyond the last K tasks."""
        weights: dict[str, float] = {}
        for task, weight in zip(
            self.tasks, self.record.energy.weights(len(self.tasks)), strict=True
        ):
            weights[task.digest] = weights.get(task.digest, 0.0) + weight
        return tuple(
            (one, weights.get(one.record.adapter, 0.0) * one.record.importance)
            for one in self.curvatures
        )

    @property
    def directions_size(self) -> tuple[int, int]:
        """How many curvatures there are, and the most directions that one of them has."""
        counts = [one.directions for one in self.curvatures]
        return len(counts), max(counts, default=0)

    def verify(self) -> None:
        """Reads everything once.

        Raises:
            PastError, AdapterError: a tensor is not what its checksum says.
        """
        self.contents.verify()
        for one in self.curvatures:
            one.verify()


def usual_energy(adapters: Sequence[Adapter]) -> Energy:
    """Curvature where every adapter has measured it, for it protects better (docs/results.md)."""
    return "curvature" if adapters and all(map(has_curvature, adapters)) else "sum"


def read_past(path: Path) -> Past:
    """Opens a W_past file: its header is checked now, each tensor's checksum at its first use.

    Raises:
        PastError: missing, damaged, of a later version, or no past at all.
    """
    if not path.is_file():
        raise PastError(
            f"there is no W_past file {path}",
            hint="make one with `ella accumulate ADAPTER... --past FILE`",
        )
    file = TensorFile.open(path, PastError)
    record = _read_record(file.metadata, path)
    curvatures = curvatures_of(file, record)
    store = factored_store if record.store == "factored" else DenseStore
    past = Past(record, path, store(file, record), curvatures)
    for name in past.names:
        if past.shape(name)[1] % math.prod(past.layer(name).kernel):
            raise PastError(
                f"{path}: {name} is {past.shape(name)}, no convolution of "
                f"{past.layer(name).kernel}",
                hint="the file was changed by hand; restore it, or accumulate the adapters again",
            )
    return past
