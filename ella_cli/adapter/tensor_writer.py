"""A safetensors file written tensor by tensor, in memory that does not grow with the file.

The safetensors library writes a whole dictionary. The bytes are the library's, and tests hold them
to it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from threading import Lock

from torch import Tensor

from ella_cli.adapter.tensor_file import TensorFile, bytes_of
from ella_cli.adapter.tensor_header import Entry, header_text

# Data begins on a page, so that a copy of it can share the disk's blocks where the file system
# knows how.
_ALIGNMENT = 4096


class TensorFileWriter:
    """Writes a safetensors file; the metadata may be settled at the end.

    `write` and `copy` take the tensors in the order of the layout. `write_part` takes them in any
    order and from any thread; a file is written in one way or the other.

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
        self._header = header_text(layout, metadata)
        self._data_start = _aligned(8 + len(self._header))
        self._starts = dict(
            zip(
                layout,
                accumulate((e.nbytes for e in layout.values()), initial=self._data_start),
                strict=False,
            )
        )
        self._left = sum(entry.nbytes for entry in layout.values())
        self._counting = Lock()
        self._file = path.open("wb", buffering=0)
        self._file.seek(self._data_start)

    def write(self, tensor: Tensor) -> None:
        """The next tensor of the layout, in its dtype."""
        self._write_all(bytes_of(tensor))

    def write_part(self, name: str, skip: int, tensor: Tensor) -> None:
        """Rows of the tensor `name`, in its dtype, from its byte `skip` on."""
        view = bytes_of(tensor)
        assert skip + len(view) <= self._layout[name].nbytes
        with self._counting:
            self._left -= len(view)
        at = self._starts[name] + skip
        while view:
            done = os.pwrite(self._file.fileno(), view, at)
            view, at = view[done:], at + done

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
        text = self._header if same else header_text(self._layout, metadata)
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


def _copy_in_kernel(source: int, target: int, start: int, count: int) -> int:
    """Bytes copied without passing through this process; 0 where the system cannot."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, count, offset_src=start)
    except OSError:
        # Across file systems, or on one that cannot: a disk that is full fails again in write.
        return 0


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
