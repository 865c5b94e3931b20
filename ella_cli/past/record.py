"""What a W_past file says about itself, as the JSON text in its header (docs/file-formats.md)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from ella_cli.adapter import Layer
from ella_cli.adapter.curvature_record import CurvatureRecord, Finite
from ella_cli.config import Energy
from ella_cli.errors import PastError
from ella_cli.names import is_nameable
from ella_cli.wording import plain

Store = Literal["factored", "dense"]


def smaller_store(factored: int, dense: int) -> Store:
    """What a past is kept as where nothing else decides, from its bytes in either."""
    return "factored" if factored < dense else "dense"


METADATA_KEY = "ella_past"
# 2 is 1 with curvature, 3 to 5 hold curvatures of versions 2 to 4: an earlier reader would leave
# out what the file is told to protect, or weigh it otherwise.
PLAIN_VERSION, CURVATURE_VERSION, LATEST_VERSION = 1, 2, 5
# In a digest's place while what it is of is being written.
NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Base:
    """The model whose weights the past is added to; empty where the adapters did not know."""

    model: str = ""
    fingerprint: str = ""
    task_type: str | None = None
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        said = (self.model, self.fingerprint, self.task_type or "")
        if not all(is_nameable(one) and len(one) <= 4096 for one in said):
            raise ValueError("its base model has no usable name")


@dataclass(frozen=True)
class PastTask:
    """One task's part of the past.

    Attributes:
        digest: the adapter's (SHA-256 over factors and scales).
        lam: the λ it was trained with; None for a foreign adapter.
        update_norm: ‖ΔW‖_F over all modules, as added.
        rank: the largest of its modules.
        scale: of the module with the largest rank.
        date: of the addition, UTC, ISO 8601.
        folder: where the adapter lay, seen from the past's own folder.
        shrink: the λ of ΔW / (1 + λ E²), where that was added instead of ΔW.
        order_index: its place in the order it was trained in, from 0; None where not known.
    """

    name: str
    digest: str
    update_norm: Finite
    rank: int
    scale: Finite
    date: str
    lam: Annotated[Finite | None, Field(alias="lambda")] = None
    folder: str = ""
    shrink: Finite | None = None
    order_index: Annotated[int, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if not self.name or not is_nameable(self.name) or len(self.name) > 500:
            raise ValueError("a task has no usable name")


@dataclass(frozen=True)
class BlockRecord:
    """The factors of one task, or of several after compaction.

    Attributes:
        tasks: how many of the past's tasks, in order, it holds.
        digest: as an adapter's, over the block's factors and scales.
        scale: of every module that `scales` does not name.
    """

    tasks: int
    digest: str
    scale: float = 1.0
    scales: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tasks < 1 or not all(map(math.isfinite, (self.scale, *self.scales.values()))):
            raise ValueError("a block holds no task, or its scale is not finite")
        if not self.digest:
            raise ValueError("a block has no digest")


@dataclass(frozen=True)
class EnergyKind:
    """E per coordinate, from the updates ΔW_i, oldest first, of T tasks.

    `sum` |Σ wᵢ ΔWᵢ|, `abs` Σ wᵢ|ΔWᵢ|, `rss` sqrt(Σ wᵢ² ΔWᵢ²); wᵢ = decay^(T − i), and 0 for all
    but the last K tasks. `curvature` is no matrix of that kind: what each task's curvature predicts
    is weighed by wᵢ. The weights act on the energy only: every task stays in the sum that is added
    to the model.
    """

    kind: Energy = "sum"
    last: int | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ValueError("last is not a positive number of tasks")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError("decay is not in (0, 1]")

    @classmethod
    def asked(cls, kind: Energy, last: int | None, decay: float | None) -> EnergyKind:
        """As options say it: a window of 0 tasks is none, and a decay by 1 is none."""
        return cls(kind, last or None, None if decay == 1 else decay)

    @property
    def needs_tasks_apart(self) -> bool:
        """Whether only some tasks' coordinates are protected, which no sum of all can tell."""
        return self.last is not None and not self.is_plain

    @property
    def is_plain(self) -> bool:
        """Whether no second matrix is needed beside W_past."""
        if self.kind == "curvature":
            return True
        return self.kind == "sum" and not self.weighs

    @property
    def weighs(self) -> bool:
        """Whether some tasks count less than others."""
        return self.last is not None or self.decay is not None

    @property
    def words(self) -> str:
        """`abs, last 3, decay 0.5`"""
        last = f", last {self.last}" if self.last is not None else ""
        decay = f", decay {self.decay:g}" if self.decay is not None else ""
        return self.kind + last + decay

    def weights(self, tasks: int) -> tuple[float, ...]:
        """One a task, oldest first."""
        decay = 1.0 if self.decay is None else self.decay
        last = tasks if self.last is None else self.last
        return tuple(decay ** (tasks - 1 - i) if tasks - i <= last else 0.0 for i in range(tasks))


@dataclass(frozen=True)
class Record:
    """The whole of it.

    Attributes:
        layers: modules that are not plain matrices.
        blocks: of a factored store, in the order of the tasks.
        checksums: of a dense store, tensor name -> SHA-256 of its bytes.
        curvature: of the tasks that have one, in the order of their numbers in tensor names.
        digest: SHA-256 over store, energy and the digests of blocks or tensors, and curvature.
    """

    store: Store
    energy: EnergyKind
    base: Base
    tasks: tuple[PastTask, ...]
    version: int = PLAIN_VERSION
    layers: Mapping[str, Layer] = field(default_factory=dict)
    blocks: tuple[BlockRecord, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    curvature: tuple[CurvatureRecord, ...] = ()
    digest: str = ""

    def __post_init__(self) -> None:
        if self.store == "factored" and sum(b.tasks for b in self.blocks) != len(self.tasks):
            raise ValueError("its blocks do not hold its tasks")

    def sealed(self) -> Record:
        """The same with its digest, and of the lowest version that can say it."""
        contents: Sequence[object] = (
            [block.digest for block in self.blocks]
            if self.store == "factored"
            else sorted(self.checksums.items())
        )
        energy = [self.energy.kind, self.energy.last, self.energy.decay]
        parts: list[object] = [self.store, energy, contents]
        if self.curvature:
            parts.append([[one.adapter, one.digest] for one in self.curvature])
        text = json.dumps(parts, separators=(",", ":"))
        return replace(
            self, version=self._least_version, digest=hashlib.sha256(text.encode()).hexdigest()
        )

    @property
    def _least_version(self) -> int:
        if self.curvature:
            # Each version of a curvature made one of the file.
            return 1 + max(one.version for one in self.curvature)
        return CURVATURE_VERSION if self.energy.kind == "curvature" else PLAIN_VERSION

    def metadata(self) -> dict[str, str]:
        text = _RECORD.dump_json(self, by_alias=True).decode()
        return {"format": "pt", METADATA_KEY: text}


_RECORD = TypeAdapter(Record)


def read_record(metadata: Mapping[str, str], where: object) -> Record:
    """
    Raises:
        PastError: no past, a later version, or a record that contradicts itself.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise PastError(
            f"{where} is no W_past file: its header has no {METADATA_KEY}",
            hint="make one with `ella accumulate ADAPTER... --past FILE`",
        )
    try:
        record = _RECORD.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "record"
        raise PastError(
            f"{where} has a damaged record: {place}: {plain(first)}",
            hint="it was changed by hand; restore it, or accumulate the adapters again",
        ) from error
    if not PLAIN_VERSION <= record.version <= LATEST_VERSION:
        raise PastError(
            f"{where} is a W_past file of version {record.version}; this ella reads "
            f"{PLAIN_VERSION} to {LATEST_VERSION}",
            hint="update ella",
        )
    names = [task.name for task in record.tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PastError(
            f"{where} has a damaged record: two tasks are called {twice[:100]}",
            hint="it was changed by hand; restore it, or accumulate the adapters again",
        )
    if record.sealed().digest != record.digest:
        raise PastError(
            f"{where}: its digest {record.digest[:12]}… does not match its record",
            hint="the file is damaged; restore it, or accumulate the adapters again",
        )
    return record
