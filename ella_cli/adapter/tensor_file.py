"""A safetensors file read without trusting it, one tensor at a time.

The safetensors library maps a whole file; a past is larger than that allows. It is read here one
module at a time, in memory that does not grow with the file.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from ella_cli.adapter.tensor_header import Entry, MalformedHeader, read_header
from ella_cli.errors import EllaError

FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
)
_FLOAT_NAMES = {dtype: name for name, dtype in FLOATS.items()}

_COPY_CHUNK_BYTES = 1 << 23


def dtype_name(tensor: Tensor) -> str:
    """As the format writes it: F32, BF16, ..."""
    return _FLOAT_NAMES[tensor.dtype]


def bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's own bytes, not copied when it is contiguous."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return memoryview(flat.numpy().data)


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
            entries, metadata = read_header(handle)
        except MalformedHeader as problem:
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

    def read_into(self, name: str, tensor: Tensor, skip: int = 0) -> None:
        """Fills `tensor`, contiguous and of the entry's dtype, from byte `skip` of the entry on."""
        entry = self.entries[name]
        assert tensor.is_contiguous()
        assert skip + tensor.nbytes <= entry.nbytes
        view = bytes_of(tensor)
        done = 0
        while done < len(view):
            got = os.preadv(self._handle, [view[done:]], entry.start + skip + done)
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

    def check_finite(self, name: str, tensor: Tensor) -> None:
        """
        Args:
            name: whose tensor it is.
            tensor: not empty.

        Raises:
            error: it holds NaN or infinity.
        """
        # Of NaN and any number both are NaN.
        if not all(bool(end.isfinite()) for end in tensor.aminmax()):
            raise self._error(
                f"{self.path}: the tensor {name} is not finite",
                hint="it was made of a training that diverged; make it again from sound adapters",
            )

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
