"""Writes a dense W_past file, in memory that does not grow with it.

Modules are independent of each other and their places in the file are known beforehand, so a
thread takes one module after the other: hashing, reading, summing and writing all leave Python's
lock to the other threads.
"""

from __future__ import annotations

import hashlib
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ella_cli.adapter.tensor_file import bytes_of
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import NonFiniteError
from ella_cli.past.change import Change
from ella_cli.past.curvatures import curvature_layout, write_curvatures
from ella_cli.past.dense import DELTA, ENERGY
from ella_cli.past.record import NO_DIGEST, PastTask, Record
from ella_cli.past.sums import ModuleSums

# Rows that are read, checked, summed, hashed and written together: half of a 2 MB L2.
BLOCK_BYTES = 1 << 20
# Each hashes two bytes for one that the disk writes; more threads would wait for the disk.
_MOST_THREADS = 4
# By how much a task's entry may grow once the norm of a shrunk update is known.
_DIGITS_TO_SPARE = 32


def write_dense(change: Change, path: Path) -> Record:
    """Writes `change` to `path` (a temporary name) and returns its record.

    Raises:
        PastError: the store that is added to is damaged or of bf16.
        NonFiniteError: a sum is too large for f32.
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
        checksums=dict.fromkeys(layout, NO_DIGEST),
        curvature=tuple(one.record for one in change.curvatures),
    ).sealed()
    room = record.metadata() | {"room": " " * (_DIGITS_TO_SPARE * len(change.tasks))}
    whole = layout | curvature_layout(change.curvatures)
    with TensorFileWriter(path, whole, room) as writer:
        written = _write_modules(change, parts, writer)
        write_curvatures(change.curvatures, writer)
        checksums = dict(zip(layout, (c for one in written for c in one.checksums), strict=True))
        tasks = tuple(_remeasured(task, written) for task in change.tasks)
        record = replace(record, tasks=tasks, checksums=checksums).sealed()
        writer.finish(record.metadata())
    return record


class _Written(NamedTuple):
    """Of one module: a checksum per matrix, and ‖X‖² of each task that was shrunk."""

    checksums: list[str]
    squares: dict[PastTask, float]


def _write_modules(
    change: Change, parts: tuple[str, ...], writer: TensorFileWriter
) -> list[_Written]:
    def write(name: str) -> _Written:
        return _write_module(change, name, parts, writer)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(write, change.layers))


def _write_module(
    change: Change, name: str, parts: tuple[str, ...], writer: TensorFileWriter
) -> _Written:
    rows, columns = change.shape(name)
    height = max(1, min(rows, BLOCK_BYTES // (4 * columns)))
    matrices = torch.empty(len(parts), height, columns)  # (1 or 2, height, N) f32
    checksums = [hashlib.sha256() for _ in parts]
    sums = ModuleSums(change, name)
    for start in range(0, rows, height):
        block = matrices[:, : rows - start]
        sums.fill(start, block)
        for part, matrix, checksum in zip(parts, block.unbind(0), checksums, strict=True):
            _check_finite(name, matrix)
            checksum.update(bytes_of(matrix))
            writer.write_part(f"{name}.{part}", start * columns * 4, matrix)
    sums.finish()
    return _Written([checksum.hexdigest() for checksum in checksums], sums.squares)


def _check_finite(name: str, matrix: Tensor) -> None:
    """Each update is finite; their sum need not be, and could not be read again."""
    least, most = matrix.aminmax()
    if not (math.isfinite(least) and math.isfinite(most)):
        raise NonFiniteError(
            f"{name}: the sum of the updates is larger than f32 can hold",
            hint="leave out the adapter with the huge update; `ella inspect adapter` shows norms",
        )


def _remeasured(task: PastTask, written: list[_Written]) -> PastTask:
    squares = [one.squares[task] for one in written if task in one.squares]
    return replace(task, update_norm=math.sqrt(sum(squares))) if squares else task
