"""The past as its tasks' factors, side by side: W_past = Σ_i s_i B_i A_i, each task known apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ella_cli.adapter import Layer, Update
from ella_cli.adapter.adapter import Source, factors_digest, layers_in_order, read_update
from ella_cli.adapter.tensor_file import FLOATS, TensorFile
from ella_cli.errors import PastError, ShapeError
from ella_cli.kernels import Factors, add_update
from ella_cli.past.curvatures import other_entries
from ella_cli.past.record import EnergyKind, Record


@dataclass(frozen=True, eq=False)
class Block:
    """The factors of one task, or of several after compaction, in an adapter's or a past's file."""

    file: TensorFile = field(repr=False)
    sources: Mapping[str, Source] = field(repr=False)  # in the order of `layers_in_order`
    tasks: int = 1
    digest: str = ""  # checked against the factors at their first use; empty: nothing to check

    @property
    def nbytes(self) -> int:
        entries = self.file.entries
        return sum(entries[s.b].nbytes + entries[s.a].nbytes for s in self.sources.values())


class FactoredStore:
    """Blocks and how their updates make the energy."""

    def __init__(self, blocks: Sequence[Block], energy: EnergyKind) -> None:
        """
        Raises:
            ShapeError: two blocks disagree about a module's shape.
        """
        self.blocks = tuple(blocks)
        self._energy = energy
        self._verified: set[int] = set()
        self._sources: dict[str, Source] = {}
        for block in self.blocks:
            for name, source in block.sources.items():
                known = self._sources.setdefault(name, source)
                if (known.shape, known.layer) != (source.shape, source.layer):
                    raise ShapeError(
                        f"{name} is {known.shape} in one adapter and {source.shape} in another",
                        hint="they adapt different base models; compare them with `ella inspect`",
                    )
        self.names = tuple(sorted(self._sources, key=layers_in_order))

    def shape(self, name: str) -> tuple[int, int]:
        return self._sources[name].shape

    def layer(self, name: str) -> Layer:
        return self._sources[name].layer

    def rank(self, name: str) -> int:
        """What the ranks of a module's updates add up to."""
        return sum(block.sources[name].rank for block in self.blocks if name in block.sources)

    def operand(self, name: str) -> Tensor | Factors:
        """What the penalty is computed from: factors, or E (M, N) f32 where that has none."""
        weights = self._weights()
        if self._energy.kind in ("sum", "curvature"):
            return self.factors(name, weights)
        energy = torch.zeros(self.shape(name))  # (M, N) f32
        for update, weight in self.updates(name, weights):
            delta = dense(update).mul_(weight)
            energy.add_(delta.abs_() if self._energy.kind == "abs" else delta.square_())
        return energy if self._energy.kind == "abs" else energy.sqrt_()

    def delta(self, name: str) -> Tensor:
        """Σ ΔW_i, (M, N) f32."""
        factors = self.factors(name, (1.0,) * len(self.blocks))
        return factors.p @ factors.q

    def factors(self, name: str, weights: Sequence[float]) -> Factors:
        """Σ w_i ΔW_i as P (M, R_past) and Q (R_past, N), f32; all zero where no block has it."""
        updates = list(self.updates(name, weights))
        if not updates:
            rows, columns = self.shape(name)
            return Factors(torch.zeros(rows, 1), torch.zeros(1, columns))
        return Factors(
            torch.cat([update.b * (update.scale * weight) for update, weight in updates], dim=1),
            torch.cat([update.a for update, _ in updates], dim=0),
        )

    def updates(self, name: str, weights: Sequence[float]) -> list[tuple[Update, float]]:
        """The blocks' updates of one module, those of weight 0 left out."""
        return [
            (self._read(index, name), weight)
            for index, weight in enumerate(weights)
            if weight != 0.0 and name in self.blocks[index].sources
        ]

    def verify(self) -> None:
        """
        Raises:
            PastError: a block's factors are not what its digest says, or not finite.
        """
        for index in range(len(self.blocks)):
            self._verify(index)

    def _weights(self) -> tuple[float, ...]:
        """One a block; only plain energies have blocks of several tasks."""
        if self._energy.is_plain:
            return (1.0,) * len(self.blocks)
        return self._energy.weights(len(self.blocks))

    def _read(self, index: int, name: str) -> Update:
        self._verify(index)
        block = self.blocks[index]
        return read_update(block.file, block.sources[name])

    def _verify(self, index: int) -> None:
        block = self.blocks[index]
        if index in self._verified or not block.digest:
            return
        if factors_digest(block.file, block.sources) != block.digest:
            raise PastError(
                f"{block.file.path}: the factors of block {index} do not match their digest "
                f"{block.digest[:12]}…",
                hint="the file is damaged; restore it, or accumulate the adapters again",
            )
        for source in block.sources.values():
            for key in (source.b, source.a):
                block.file.check_finite(key, block.file.read(key))
        self._verified.add(index)


def dense(update: Update) -> Tensor:
    """ΔW, (M, N) f32."""
    delta = torch.zeros(update.shape)  # (M, N) f32
    add_update(delta, update.b, update.a, update.scale)
    return delta


def factored_store(file: TensorFile, record: Record) -> FactoredStore:
    """
    Raises:
        PastError: tensors and record do not belong together.
    """
    factors: list[dict[str, dict[str, str]]] = [{} for _ in record.blocks]
    for key in other_entries(file):
        index, module, letter = _parsed(key)
        if not 0 <= index < len(factors) or letter not in ("A", "B"):
            raise _foreign(file, key)
        factors[index].setdefault(module, {})[letter] = key
    blocks = []
    for block, modules in zip(record.blocks, factors, strict=True):
        sources = {
            name: _source(file, modules[name], block.scales.get(name, block.scale), record, name)
            for name in sorted(modules, key=layers_in_order)
        }
        blocks.append(Block(file, sources, block.tasks, block.digest))
    if not record.energy.is_plain and any(block.tasks > 1 for block in blocks):
        raise PastError(
            f"{file.path} holds compacted tasks, whose {record.energy.kind} energy is not known",
            hint="the file was changed by hand; accumulate the adapters again",
        )
    return FactoredStore(blocks, record.energy)


def _parsed(key: str) -> tuple[int, str, str]:
    index, _, rest = key.partition(".")
    module, _, letter = rest.rpartition(".")
    return (int(index) if index.isdecimal() and len(index) < 9 else -1), module, letter


def _source(
    file: TensorFile, factors: Mapping[str, str], scale: float, record: Record, name: str
) -> Source:
    if set(factors) != {"A", "B"}:
        raise _foreign(file, next(iter(factors.values())))
    b, a = file.entries[factors["B"]], file.entries[factors["A"]]
    sound = len(b.shape) == len(a.shape) == 2 and b.shape[1] == a.shape[0] > 0
    if not sound or b.dtype not in FLOATS or a.dtype not in FLOATS or not b.shape[0] * a.shape[1]:
        raise _foreign(file, factors["B"])
    layer = record.layers.get(name, Layer())
    return Source(factors["B"], factors["A"], (b.shape[0], a.shape[1]), a.shape[0], scale, layer)


def _foreign(file: TensorFile, key: str) -> PastError:
    return PastError(
        f"{file.path}: the tensor {key[:100]} is not what a factored past holds",
        hint="the file was changed by hand; restore it, or accumulate the adapters again",
    )
