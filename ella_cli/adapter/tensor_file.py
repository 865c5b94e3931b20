"""A safetensors file read without trusting it, and one written tensor by tensor.

The safetensors library maps a whole file and writes a whole dictionary. A past is larger than
that allows: it is read and written here one module at a time, in memory that does not grow with
the file. The bytes are the library's, and tests hold them to it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ella_cli.errors import EllaError

FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
_FLOAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}

# What a base model's file may hold besides floats: copied, never computed with.
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4} | {
    "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

# The format's own limit.
_HEADER_LIMIT_BYTES = 100_000_000
# Data begins on a page, so that a copy of it can share the disk's blocks where the file system
# knows how.
_ALIGNMENT = 4096
_COPY_CHUNK_BYTES = 1 << 23
_COUNT_LIMIT = 1 << 62


class Entry(NamedTuple):
    """One tensor of a file: what it is and where its bytes lie, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def dtype_name(tensor: Tensor) -> str:
    """As the format writes it: F32, BF16, ..."""
    return _FLOAT_NAMES[tensor.dtype]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """An open safetensors file: its header checked, its tensors read when asked for.

    It keeps the file it opened, even when another is renamed over its path.
    """

    path: Path
    entries: Mapping[str, Entry]  # in the order of their bytes
    metadata: Mapping[str, str]
    _handle: int = field(repr=False)
    _error: type[EllaError] = field(repr=False)

    @classmethod
    def open(cls, path: Path, error: type[EllaError]) -> TensorFile:
        """Opens and checks `path`: no memory is taken before sizes, dtypes and offsets agree.

        Raises:
            error: missing, unreadable, or not a well-formed safetensors file.
        """
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as problem:
            raise error(f"cannot read {path}: {problem.strerror}", hint="check the path") from (
                problem
            )
        try:
            entries, metadata = _read_header(handle)
        except _Malformed as problem:
            os.close(handle)
            raise error(
                f"{path} is not a sound safetensors file: {problem}",
                hint="it was cut short, damaged or made by something else; fetch it again",
            ) from problem
        file = cls(path, MappingProxyType(entries), MappingProxyType(metadata), handle, error)
        weakref.finalize(file, os.close, handle)
        return file

    def read(self, name: str) -> Tensor:
        """A copy of one tensor, as stored."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=self._dtype(name))  # as stored
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, tensor: Tensor) -> None:
        """Fills `tensor`, contiguous and of the entry's own dtype and size."""
        entry = self.entries[name]
        assert tensor.is_contiguous()
        assert tensor.nbytes == entry.nbytes
        view = bytes_of(tensor)
        done = 0
        while done < len(view):
            got = os.preadv(self._handle, [view[done:]], entry.start + done)
            if got == 0:
                raise self._error(
                    f"{self.path} ends inside {name}", hint="it was cut short; fetch it again"
                )
            done += got

    def map(self, name: str) -> Tensor:
        """One tensor as a view of the file: pages are read when touched, writes stay private."""
        entry = self.entries[name]
        dtype = self._dtype(name)
        first_page = entry.start - entry.start % mmap.ALLOCATIONGRANULARITY
        pages = mmap.mmap(
            self._handle, entry.stop - first_page, access=mmap.ACCESS_COPY, offset=first_page
        )
        count = math.prod(entry.shape)
        flat = torch.frombuffer(pages, dtype=dtype, count=count, offset=entry.start - first_page)
        return flat.view(entry.shape)

    def raw(self, start: int, stop: int) -> Iterable[bytes]:
        """The file's bytes from `start` to `stop`, in pieces."""
        while start < stop:
            piece = os.pread(self._handle, min(_COPY_CHUNK_BYTES, stop - start), start)
            if not piece:
                raise self._error(
                    f"{self.path} ends early", hint="it was cut short; fetch it again"
                )
            yield piece
            start += len(piece)

    def fileno(self) -> int:
        return self._handle

    def _dtype(self, name: str) -> torch.dtype:
        stored = self.entries[name].dtype
        if stored not in FLOATS:
            raise self._error(
                f"{self.path}: {name} is {stored}, not a float tensor",
                hint=f"one of {', '.join(FLOATS)} is needed",
            )
        return FLOATS[stored]


class TensorFileWriter:
    """Writes a safetensors file in one pass; the metadata may be settled at the end.

    Args:
        path: created or emptied; give the temporary name of `ella_cli.files.replacing`.
        layout: name -> dtype and shape, in the order in which the tensors will come.
        metadata: as long as it can get; `finish` may give shorter or equally long values.
    """

    def __init__(
        self, path: Path, layout: Mapping[str, Entry], metadata: Mapping[str, str]
    ) -> None:
        self._layout = layout
        self._metadata = dict(metadata)
        self._header = _header_text(layout, metadata)
        self._data_start = _aligned(8 + len(self._header))
        self._left = sum(entry.nbytes for entry in layout.values())
        self._file = path.open("wb", buffering=0)
        self._file.seek(self._data_start)

    def write(self, tensor: Tensor) -> None:
        """The next tensor of the layout, in its dtype."""
        self._write_all(bytes_of(tensor))

    def copy(self, source: TensorFile, start: int, stop: int) -> None:
        """The next tensors of the layout, as the bytes `start` to `stop` of another file."""
        self._left -= stop - start
        while start < stop:
            done = _copy_in_kernel(source.fileno(), self._file.fileno(), start, stop - start)
            if done == 0:
                break
            start += done
        for piece in source.raw(start, stop):
            self._left += len(piece)
            self._write_all(memoryview(piece))

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Writes the header; until then the file is no safetensors file."""
        assert self._left == 0, f"{self._left} bytes of the layout were not written"
        # A past of many tasks has a header of megabytes: it is made once where it can be.
        same = self._metadata == dict(metadata)
        text = self._header if same else _header_text(self._layout, metadata)
        room = self._data_start - 8
        assert len(text) <= room
        self._file.seek(0)
        self._write_all(memoryview(struct.pack("<Q", room) + text.ljust(room)), count=False)
        self.close()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_all(self, view: memoryview, *, count: bool = True) -> None:
        if count:
            self._left -= len(view)
            assert self._left >= 0, "more bytes than the layout holds"
        while view:
            view = view[self._file.write(view) :]


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own bytes, not copied when it is contiguous."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


def _copy_in_kernel(source: int, target: int, start: int, count: int) -> int:
    """Bytes copied without passing through this process; 0 where the system cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, offset_src=start)
    except OSError:
        # Across file systems, or on one that cannot: a disk that is full fails again in write.
        return 0


def _header_text(layout: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, entry in layout.items():
        stop = at + entry.nbytes
        header[name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, stop],
        }  # fmt: skip
        at = stop
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Malformed(Exception):  # noqa: N818 - private, and reads better in a sentence
    """Why a header cannot be believed."""


def _read_header(handle: int) -> tuple[dict[str, Entry], dict[str, str]]:
    file_bytes = os.fstat(handle).st_size
    prefix = os.pread(handle, 8, 0)
    if len(prefix) < 8:
        raise _Malformed("it is shorter than a header's length field")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_HEADER_LIMIT_BYTES, file_bytes - 8):
        raise _Malformed(f"its header claims {length} bytes of a file of {file_bytes}")
    try:
        header = json.loads(os.pread(handle, length, 8), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as problem:
        raise _Malformed("its header is not JSON") from problem
    if not isinstance(header, dict):
        raise _Malformed("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Malformed("its metadata is not a map of strings")
    entries = [(name, _entry(name, value, 8 + length)) for name, value in header.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    at = 8 + length
    for name, entry in entries:
        if entry.start != at:
            raise _Malformed(f"{name[:80]} begins at byte {entry.start}, where {at} is due")
        at = entry.stop
    if at != file_bytes:
        raise _Malformed(f"its tensors end at byte {at} of {file_bytes}")
    return dict(entries), metadata


def _entry(name: str, value: object, data_start: int) -> Entry:
    shown = name[:80]
    if not isinstance(value, dict):
        raise _Malformed(f"{shown} has no description")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _Malformed(f"{shown} has the unknown dtype {str(dtype)[:20]}")
    shape, offsets = _counts(value.get("shape")), _counts(value.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > 8:
        raise _Malformed(f"{shown} has no usable shape or offsets")
    entry = Entry(dtype, shape, data_start + offsets[0], data_start + offsets[1])
    if entry.nbytes != entry.stop - entry.start:
        raise _Malformed(
            f"{shown} is {dtype} {list(shape)}, {entry.nbytes} bytes, in room for "
            f"{entry.stop - entry.start}"
        )
    return entry


def _counts(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    for number in value:
        if type(number) is not int or not 0 <= number < _COUNT_LIMIT:
            return None
    return tuple(value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
