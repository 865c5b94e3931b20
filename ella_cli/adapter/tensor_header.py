"""The header of a safetensors file: checked before it is believed, and written."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ella_cli.names import is_nameable

# Floats are computed with; what else a base model's file may hold is only copied.
ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2}
    | {"U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
)

# The format's own limit.
_HEADER_LIMIT_BYTES = 100_000_000
_COUNT_LIMIT = 1 << 62
_NAME_LIMIT = 500


class Entry(NamedTuple):
    """One tensor of a file: what it is and where its bytes lie, counted from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class MalformedHeader(Exception):  # noqa: N818 - reads better in a sentence
    """Why a header cannot be believed."""


def read_header(handle: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors in the order of their bytes, and metadata, of an open file.

    Raises:
        MalformedHeader: sizes, dtypes, offsets and the file's length do not agree.
    """
    file_bytes = os.fstat(handle).st_size
    prefix = os.pread(handle, 8, 0)
    if len(prefix) < 8:
        raise MalformedHeader("it is shorter than a header's length field")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_HEADER_LIMIT_BYTES, file_bytes - 8):
        raise MalformedHeader(f"its header claims {length} bytes of a file of {file_bytes}")
    try:
        header = json.loads(os.pread(handle, length, 8), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as problem:
        raise MalformedHeader("its header is not JSON") from problem
    if not isinstance(header, dict):
        raise MalformedHeader("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise MalformedHeader("its metadata is not a map of strings")
    entries = [(name, _entry(name, value, 8 + length)) for name, value in header.items()]
    entries.sort(key=lambda item: (item[1].start, item[1].stop))
    at = 8 + length
    for name, entry in entries:
        if entry.start != at:
            raise MalformedHeader(f"{name[:80]} begins at byte {entry.start}, where {at} is due")
        at = entry.stop
    if at != file_bytes:
        raise MalformedHeader(f"its tensors end at byte {at} of {file_bytes}")
    return dict(entries), metadata


def header_text(layout: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The JSON of a file whose tensors lie one after the other in the order of `layout`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, entry in layout.items():
        stop = at + entry.nbytes
        header[name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, stop],
        }  # fmt: skip
        at = stop
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _entry(name: str, value: object, data_start: int) -> Entry:
    shown = name[:80]
    if not is_nameable(name) or len(name) > _NAME_LIMIT:
        # Half a character cannot be written again, a control character would reach the terminal.
        raise MalformedHeader(f"it has a tensor with the unusable name {shown!a}")
    if not isinstance(value, dict):
        raise MalformedHeader(f"{shown} has no description")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedHeader(f"{shown} has the unknown dtype {str(dtype)[:20]}")
    shape, offsets = _counts(value.get("shape")), _counts(value.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > 8:
        raise MalformedHeader(f"{shown} has no usable shape or offsets")
    entry = Entry(dtype, shape, data_start + offsets[0], data_start + offsets[1])
    if entry.nbytes != entry.stop - entry.start:
        raise MalformedHeader(
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
