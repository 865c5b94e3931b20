"""What a task's answers depend on, kept beside its adapter: `curvature.safetensors`.

Per adapted module two factors, `<module>.U` (M, K) and `<module>.V` (N, K'), with G = U Uᵀ and
C = V Vᵀ; ½ tr(ΔWᵀ G ΔW C), summed over modules, is the expected rise of that task's loss in nats
per answer token when ΔW is added to the weights. docs/file-formats.md specifies the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ella_cli.adapter.adapter import Adapter, layers_in_order
from ella_cli.adapter.tensor_file import FLOATS, TensorFile, bytes_of, dtype_name
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import AdapterError, EllaError
from ella_cli.files import replacing
from ella_cli.kernels import Kronecker

if TYPE_CHECKING:
    from torch import Tensor

CURVATURE = "curvature.safetensors"
METADATA_KEY = "ella_curvature"
VERSION = 1


@dataclass(frozen=True)
class CurvatureRecord:
    """Where a curvature comes from.

    Attributes:
        adapter: digest of the adapter whose task it is.
        task: its name.
        model, fingerprint: the base model; `past`, what was folded into it beside the adapter.
        data: fingerprint of the task's rows.
        rows, tokens: training rows looked at, and their answer tokens.
        seed: of the sampled answers.
        coherence: by which G was multiplied, since modules act together.
        dropped: module -> shares of the traces of G and of C that truncation cut off.
        digest: over all factors, as `factors_digest` makes it.
    """

    adapter: str
    task: str
    model: str = ""
    fingerprint: str = ""
    past: str = ""
    data: str = ""
    rows: int = 0
    tokens: int = 0
    seed: int = 0
    coherence: float = 1.0
    dropped: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    digest: str = ""
    version: int = VERSION


RECORD = TypeAdapter(CurvatureRecord)


@dataclass(frozen=True, eq=False)
class Curvature:
    """One task's curvature, in a file of its own or inside a past; read when asked for.

    Attributes:
        keys: module -> the names of U and V in the file.
        rank: columns used of each factor, of the largest eigenvalues; None for all.
    """

    record: CurvatureRecord
    file: TensorFile = field(repr=False)
    keys: Mapping[str, tuple[str, str]] = field(repr=False)
    rank: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)

    @property
    def nbytes(self) -> int:
        return sum(self.entry(key).nbytes for pair in self.keys.values() for key in pair)

    def entry(self, key: str) -> Entry:
        """Dtype and shape of a factor as it is used."""
        stored = self.file.entries[key]
        rows, columns = stored.shape
        return Entry(
            stored.dtype, (rows, columns if self.rank is None else min(columns, self.rank))
        )

    def factor(self, key: str) -> Tensor:
        """(M or N, K), in the file's dtype."""
        return self.file.read(key)[:, : self.rank].contiguous()

    def truncated(self, rank: int) -> Curvature:
        """The same with at most `rank` columns of each factor; its record says what is lost.

        Raises:
            AdapterError: it is damaged.
        """
        _ = self.verified
        less = replace(self, rank=rank)
        dropped = {}
        for name, pair in self.keys.items():
            before = self.record.dropped.get(name, (0.0, 0.0))
            shares = (_lost(self.factor(key), rank) for key in pair)
            u, v = (1 - (1 - old) * (1 - new) for old, new in zip(before, shares, strict=True))
            dropped[name] = (u, v)
        return replace(less, record=replace(self.record, dropped=dropped, digest=_digest(less)))

    def shape(self, name: str) -> tuple[int, int]:
        """(M, N) of the updates it judges."""
        u, v = self.keys[name]
        return self.file.entries[u].shape[0], self.file.entries[v].shape[0]

    def kronecker(self, name: str) -> Kronecker:
        """The factors of one module, f32; a module that was not measured has none.

        Raises:
            EllaError: the file's factors are not what its digest says.
        """
        _ = self.verified
        u, v = self.keys[name]
        return Kronecker(self.factor(u).float(), self.factor(v).float())

    @cached_property
    def verified(self) -> bool:
        """
        Raises:
            AdapterError: the factors are not what the digest says, or not finite.
        """
        if _digest(self) != self.record.digest:
            raise AdapterError(
                f"{self.file.path}: the curvature of {self.record.task} does not match its digest "
                f"{self.record.digest[:12]}…",
                hint="the file is damaged; make it again with `ella measure`",
            )
        for name, pair in self.keys.items():
            if not all(bool(self.file.read(key).isfinite().all()) for key in pair):
                raise AdapterError(
                    f"{self.file.path}: the curvature of {name} is not finite",
                    hint="measure it again with `ella measure`, or take the file away",
                )
        return True


def write_curvature(
    folder: Path, modules: Mapping[str, Kronecker], record: CurvatureRecord
) -> CurvatureRecord:
    """Writes `curvature.safetensors` into an adapter's folder, whole or not at all; bf16.

    Returns:
        The record with its digest.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    import torch

    tensors = {}
    for name in sorted(modules, key=layers_in_order):
        tensors[f"{name}.U"] = modules[name].u.to(torch.bfloat16).contiguous()
        tensors[f"{name}.V"] = modules[name].v.to(torch.bfloat16).contiguous()
    layout = {key: Entry(dtype_name(t), tuple(t.shape)) for key, t in tensors.items()}
    sums = [(key, hashlib.sha256(bytes_of(t)).hexdigest()) for key, t in tensors.items()]
    record = replace(record, digest=_joined(sums, layout))
    metadata = {"format": "pt", METADATA_KEY: RECORD.dump_json(record).decode()}
    with (
        replacing(folder / CURVATURE) as temporary,
        TensorFileWriter(temporary, layout, metadata) as writer,
    ):
        for tensor in tensors.values():
            writer.write(tensor)
        writer.finish(metadata)
    return record


def has_curvature(adapter: Adapter) -> bool:
    """Whether a curvature lies beside it; it is not looked into."""
    return (adapter.path / CURVATURE).is_file()


def read_curvature(adapter: Adapter) -> Curvature | None:
    """The curvature beside an adapter; None where none was measured.

    Raises:
        AdapterError: the file is damaged, of a later version, of another adapter, or its shapes
            are not the adapter's.
    """
    path = adapter.path / CURVATURE
    if not path.is_file():
        return None
    file = TensorFile.open(path, AdapterError)
    record = _record(file.metadata.get(METADATA_KEY), path)
    if record.adapter != adapter.digest:
        raise AdapterError(
            f"{path} was measured for another adapter than the one beside it",
            hint="measure it again with `ella measure`, or take the file away",
        )
    curvature = Curvature(record, file, curvature_keys(file, file.entries, "", AdapterError))
    for name in curvature.names:
        if name not in adapter.sources or curvature.shape(name) != adapter.shape(name):
            raise AdapterError(
                f"{path}: {name} is {curvature.shape(name)}, which the adapter does not adapt so",
                hint="measure it again with `ella measure`, or take the file away",
            )
    return curvature


def curvature_keys(
    file: TensorFile, keys: Mapping[str, Any], prefix: str, error: type[EllaError]
) -> dict[str, tuple[str, str]]:
    """Module -> names of U and V, for the tensors of `file` in `keys`, which begin with `prefix`.

    Raises:
        error: a factor without its other, or that is no float matrix.
    """
    modules = sorted({key[len(prefix) : -2] for key in keys}, key=layers_in_order)
    found = {name: (f"{prefix}{name}.U", f"{prefix}{name}.V") for name in modules}
    expected = {key for pair in found.values() for key in pair}
    wrong = sorted(expected ^ set(keys))
    wrong += [
        key
        for key in sorted(expected & set(keys))
        if len(file.entries[key].shape) != 2
        or file.entries[key].dtype not in FLOATS
        or not file.entries[key].nbytes
    ]
    if wrong:
        raise error(
            f"{file.path}: the tensor {wrong[0][:100]} is not what a curvature holds",
            hint="the file was changed by hand; make it again with `ella measure`",
        )
    return found


def _record(text: str | None, path: Path) -> CurvatureRecord:
    try:
        record = RECORD.validate_json(text or "")
    except ValidationError as error:
        raise AdapterError(
            f"{path} has no sound record {METADATA_KEY} in its header",
            hint="make it again with `ella measure`, or take the file away",
        ) from error
    if record.version != VERSION:
        raise AdapterError(
            f"{path} is a curvature of version {record.version}; this ella reads {VERSION}",
            hint="update ella",
        )
    return record


def _lost(factor: Tensor, rank: int) -> float:
    """Share of tr(U Uᵀ) in the columns past `rank`."""
    squares = factor.double().square()
    whole = float(squares.sum())
    return float(squares[:, rank:].sum()) / whole if whole > 0 else 0.0


def _digest(curvature: Curvature) -> str:
    plain = {f"{name}.{letter}": key for name, pair in curvature.keys.items()
             for letter, key in zip("UV", pair, strict=True)}  # fmt: skip
    sums = [
        (name, hashlib.sha256(bytes_of(curvature.factor(key))).hexdigest())
        for name, key in plain.items()
    ]
    return _joined(sums, {name: curvature.entry(key) for name, key in plain.items()})


def _joined(sums: list[tuple[str, str]], entries: Mapping[str, Entry]) -> str:
    """SHA-256 over one line a factor: name, dtype, shape, SHA-256 of its bytes."""
    digest = hashlib.sha256()
    for key, checksum in sums:
        entry = entries[key]
        digest.update(f"{key} {entry.dtype} {list(entry.shape)} {checksum}\n".encode())
    return digest.hexdigest()
