"""Writes a dense W_past file, module by module, in memory that does not grow with the file."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ella_cli.adapter.tensor_file import bytes_of
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.past.change import Change
from ella_cli.past.dense import DELTA, ENERGY
from ella_cli.past.record import PastTask, Record
from ella_cli.past.sums import ModuleSums

# While one module is hashed and written, the next is computed.
_IN_FLIGHT = 2
_CHECKSUM_DIGITS = 64
# By how much a task's entry may grow once the norm of a shrunk update is known.
_DIGITS_TO_SPARE = 32


def write_dense(change: Change, path: Path) -> Record:
    """Writes `change` to `path` (a temporary name) and returns its record.

    Raises:
        PastError: the store that is added to is damaged or of bf16.
    """
    parts = (DELTA,) if change.energy.is_plain else (DELTA, ENERGY)
    layout = {
        f"{name}.{part}": Entry("F32", change.shape(name))
        for name in change.layers
        for part in parts
    }
    record = Record(
        store="dense",
        energy=change.energy,
        base=change.base,
        tasks=change.tasks,
        layers={name: layer for name, layer in change.layers.items() if layer.kind != "linear"},
        checksums=dict.fromkeys(layout, "0" * _CHECKSUM_DIGITS),
    ).sealed()
    room = record.metadata() | {"room": " " * (_DIGITS_TO_SPARE * len(change.tasks))}
    sums = ModuleSums(change)
    with TensorFileWriter(path, layout, room) as writer:
        checksums = dict(zip(layout, _stream(change, sums, writer), strict=True))
        tasks = tuple(_remeasured(task, sums) for task in change.tasks)
        record = replace(record, tasks=tasks, checksums=checksums).sealed()
        writer.finish(record.metadata())
    return record


def _stream(change: Change, sums: ModuleSums, writer: TensorFileWriter) -> Iterator[str]:
    """Writes every module's matrices; yields their checksums in the order of the layout."""
    matrices = 1 if change.energy.is_plain else 2
    largest = max((math.prod(change.shape(name)) for name in change.layers), default=0)
    # Reused throughout: fresh pages for every module would cost as much as the sums.
    free = deque(torch.empty(matrices, largest) for _ in range(_IN_FLIGHT))
    pending: deque[tuple[Tensor, Future[list[str]]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for name in change.layers:
            if not free:
                buffer, written = pending.popleft()
                yield from written.result()
                free.append(buffer)
            buffer = free.popleft()
            shape = change.shape(name)
            views = buffer[:, : math.prod(shape)].view(matrices, *shape)  # (1 or 2, M, N) f32
            sums.fill(name, views)
            pending.append((buffer, thread.submit(_write, writer, views)))
        for _, written in pending:
            yield from written.result()


def _write(writer: TensorFileWriter, matrices: Tensor) -> list[str]:
    checksums = []
    for matrix in matrices.unbind(0):
        checksums.append(hashlib.sha256(bytes_of(matrix)).hexdigest())
        writer.write(matrix)
    return checksums


def _remeasured(task: PastTask, sums: ModuleSums) -> PastTask:
    square = sums.squares.get(task)
    return task if square is None else replace(task, update_norm=math.sqrt(square))
