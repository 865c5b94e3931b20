"""One adapter folder: which modules it changes, by which ΔW, for which task and base model."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ella_cli.adapter.lora_config import LoraSettings
from ella_cli.adapter.tensor_file import FLOATS, TensorFile, bytes_of, dtype_name
from ella_cli.adapter.tensor_header import Entry
from ella_cli.errors import AdapterError, StorageError
from ella_cli.files import read_json
from ella_cli.manifest import read_manifest
from ella_cli.names import is_nameable, nameable

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\."
    r"(?:lora_(?P<matrix>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))"
)
# peft saves targeted input and output embeddings with their untouched base weight.
_BASE_COPY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.(?:weight|bias)")

_WEIGHTS = "adapter_model.safetensors"

# Far more than a model has, and few enough for a pattern to be matched against.
_MODULE_LIMIT = 200
_TASK_LIMIT = 500

# Python reads no number of more, and a stranger's file may have one in a name.
_MOST_DIGITS = 4300


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW = scale · B A, (M, N), in the orientation out × in whatever way the weight is stored."""

    b: Tensor  # (M, R) f32
    a: Tensor  # (R, N) f32
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def norm(self) -> float:
        """‖ΔW‖_F in float64, without making ΔW."""
        b, a = self.b.double(), self.a.double()
        squared = float(((b.T @ b) * (a @ a.T)).sum())
        return abs(self.scale) * math.sqrt(max(squared, 0.0) if squared == squared else math.nan)


@dataclass(frozen=True)
class Layer:
    """What ΔW (M, N) is added to.

    Linear and Conv1D weights are matrices; an embedding's is stored as (N, M); a convolution's
    input is (in, *kernel) laid flat, N = in · prod(kernel).
    """

    kind: Literal["linear", "embedding", "conv"] = "linear"
    kernel: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.kernel):
            raise ValueError("a convolution's kernel has no size")


class Source(NamedTuple):
    """Where one module's factors lie."""

    b: str  # tensor names
    a: str
    shape: tuple[int, int]  # (M, N)
    rank: int
    scale: float
    layer: Layer


@dataclass(frozen=True, eq=False)
class Adapter:
    """A stock PEFT LoRA adapter.

    Attributes:
        path: the folder.
        base_model: id or path of W0 from adapter_config.json; empty where peft did not know it.
        names: adapted modules, without the prefix `base_model.model.`, layers in order.
        manifest: the ella.json beside it; None for an adapter made elsewhere.
        task: the manifest's task, else the folder's name.
        left_out: tensors that LoRA does not train (copies of embeddings) and a past ignores.
    """

    path: Path
    base_model: str
    names: tuple[str, ...]
    manifest: Mapping[str, Any] | None
    task: str
    task_type: str | None
    fan_in_fan_out: bool
    left_out: tuple[str, ...]
    file: TensorFile = field(repr=False)
    sources: Mapping[str, Source] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over all factors and what scales them; the folder's name is not in it.

        One line a module, in the order of `names`: name, scale, dtype and SHA-256 of B and of A,
        then the shape of ΔW and the rank (docs/file-formats.md).
        """
        return factors_digest(self.file, self.sources)

    def shape(self, name: str) -> tuple[int, int]:
        return self.sources[name].shape

    def rank(self, name: str) -> int:
        return self.sources[name].rank

    def update(self, name: str) -> Update:
        """Reads one module's factors, as f32."""
        source = self.sources[name]
        return read_update(self.file, source)


def read_update(file: TensorFile, source: Source) -> Update:
    b, a = file.read(source.b).float(), file.read(source.a).float()
    rows, columns = source.shape
    return Update(b.reshape(rows, source.rank), a.reshape(source.rank, columns), source.scale)


def factors_digest(file: TensorFile, sources: Mapping[str, Source]) -> str:
    return tensors_digest(sources, file.read)


def tensors_digest(sources: Mapping[str, Source], tensor: Callable[[str], Tensor]) -> str:
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name} {source.scale!r}".encode())
        for key in (source.b, source.a):
            content = tensor(key)
            checksum = hashlib.sha256(bytes_of(content)).hexdigest()
            digest.update(f" {dtype_name(content)} {checksum}".encode())
        digest.update(f" {list(source.shape)} {source.rank}\n".encode())
    return digest.hexdigest()


def read_adapter(path: Path) -> Adapter:
    """Opens and checks an adapter folder; tensors are read when asked for.

    Raises:
        AdapterError: no adapter there, pickled weights, a variant whose ΔW is not scale · B A
            (named), or factors that do not fit each other or their settings.
    """
    settings = LoraSettings(_adapter_json(path / "adapter_config.json", path), path)
    if not (path / _WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        raise AdapterError(
            f"{path} has no {_WEIGHTS}" + (", only a pickled adapter_model.bin" if pickled else ""),
            hint="save it with peft's save_pretrained, which writes safetensors",
        )
    file = TensorFile.open(path / _WEIGHTS, AdapterError)
    factors, left_out = _pair(file, path)
    names = sorted(factors, key=layers_in_order)
    sources = {name: _source(name, factors[name], settings, file) for name in names}
    manifest = read_manifest(path)
    return Adapter(
        path=path,
        base_model=settings.base_model,
        names=tuple(names),
        manifest=manifest,
        task=_task(manifest, path),
        task_type=settings.task_type,
        fan_in_fan_out=settings.fan_in_fan_out,
        left_out=left_out,
        file=file,
        sources=MappingProxyType(sources),
    )


def _adapter_json(file: Path, folder: Path) -> Any:
    if not file.is_file():
        what = "does not exist" if not folder.exists() else f"has no {file.name}"
        raise AdapterError(f"{folder} {what}", hint="give the folder that peft saved")
    try:
        return read_json(file)
    except StorageError as error:
        raise AdapterError(
            error.message, hint="it was changed by hand or cut; save the adapter again"
        ) from error


def _pair(file: TensorFile, path: Path) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Module -> {"A": tensor name, "B": ...}, and the names of all other tensors."""
    factors: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for key in file.entries:
        match = _KEY.fullmatch(key)
        if match is None or ".base_layer" in key:
            others.append(key)
            continue
        module = match["module"]
        if "/" in module or len(module) > _MODULE_LIMIT:
            # A past's other tensors are told from its modules' by the slash.
            raise AdapterError(
                f"{path}: {module[:100]} is no name of a module",
                hint="the file was changed by hand; save the adapter again with peft",
            )
        factor = factors.setdefault(module, {})
        letter = match["matrix"] or match["embedding"]
        if letter in factor:
            raise AdapterError(
                f"{path} has two {letter} for {match['module']}", hint="save it anew"
            )
        factor[letter] = key
    for key in others:
        copy = _BASE_COPY.fullmatch(key)
        if copy is None or copy["module"] not in factors:
            raise AdapterError(
                f"{path} holds {key[:100]}, which is no LoRA factor of a module",
                hint="only plain LoRA can be added: no trained biases, magnitudes or whole modules",
            )
    if not factors:
        raise AdapterError(f"{path} has no LoRA factors", hint="give the folder that peft saved")
    return factors, tuple(others)


def _source(
    name: str, factors: Mapping[str, str], settings: LoraSettings, file: TensorFile
) -> Source:
    if set(factors) != {"A", "B"}:
        raise AdapterError(
            f"{file.path}: {name} has {' '.join(factors)} but not both A and B",
            hint="it was saved incompletely; save it again with peft",
        )
    b, a = file.entries[factors["B"]], file.entries[factors["A"]]
    rank = settings.rank(name)
    fits = len(b.shape) == len(a.shape) >= 2 and b.shape[1] == a.shape[0] == rank
    floats = b.dtype in FLOATS and a.dtype in FLOATS
    if not fits or not floats or b.nbytes * a.nbytes == 0 or set(b.shape[2:]) - {1}:
        grouped = len(b.shape) == len(a.shape) > 2 and b.shape[1] != a.shape[0] == rank
        raise AdapterError(
            f"{file.path}: {name} has B {_shown(b)} and A {_shown(a)} for rank {rank}"
            + (": a grouped convolution has no ΔW in peft" if grouped else ""),
            hint="B must be (M, R), A (R, N), R as in adapter_config.json",
        )
    scale = settings.scale(name)
    if not math.isfinite(scale):
        raise AdapterError(f"{file.path}: {name} has scale {scale}", hint="check lora_alpha and r")
    shape = (b.shape[0], math.prod(a.shape[1:]))
    return Source(factors["B"], factors["A"], shape, rank, scale, _layer(factors["A"], a))


def _layer(key: str, a: Entry) -> Layer:
    if key.endswith("lora_embedding_A"):
        return Layer("embedding")
    return Layer("conv", a.shape[2:]) if len(a.shape) > 2 else Layer()


def _shown(entry: Entry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def layers_in_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts `layers.2` before `layers.10`."""
    return tuple((int(part), "") if _is_number(part) else (-1, part) for part in name.split("."))


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) <= _MOST_DIGITS


def _task(manifest: Mapping[str, Any] | None, path: Path) -> str:
    task = manifest.get("task") if manifest is not None else None
    if not task or not isinstance(task, str):
        # What a folder's name has beside text shows as question marks.
        return nameable(os.fsencode(path.resolve().name).decode(errors="replace"))
    if not is_nameable(task) or len(task) > _TASK_LIMIT:
        raise AdapterError(
            f"{path}: its ella.json names the task {task[:60]!a}",
            hint="the file was changed by hand; restore it, or take it away",
        )
    return task
