"""Writes a factored W_past file: the blocks' bytes one after the other, nothing computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.past.change import Change, Part
from ella_cli.past.curvatures import copy_curvatures, curvature_layout
from ella_cli.past.record import Record

_Run = tuple[TensorFile, int, int]


def write_factored(change: Change, path: Path) -> Record:
    """Writes `change` to `path` (a temporary name) and returns its record.

    Old blocks are copied inside the kernel where the system can, without being read.
    """
    record = Record(
        store="factored",
        energy=change.energy,
        base=change.base,
        tasks=change.tasks,
        layers={name: layer for name, layer in change.layers.items() if layer.kind != "linear"},
        blocks=tuple(part.record for part in change.parts),
        curvature=tuple(one.record for one in change.curvatures),
    ).sealed()
    layout: dict[str, Entry] = {}
    runs: list[_Run] = []
    for index, part in enumerate(change.parts):
        for name, entry, run in _placed(index, part):
            layout[name] = entry
            _extend(runs, run)
    layout |= curvature_layout(change.curvatures)
    with TensorFileWriter(path, layout, record.metadata()) as writer:
        for file, start, stop in runs:
            writer.copy(file, start, stop)
        copy_curvatures(change.curvatures, writer)
        writer.finish(record.metadata())
    return record


def _placed(index: int, part: Part) -> Sequence[tuple[str, Entry, _Run]]:
    """A block's tensors under their new names, in the order of their bytes in the source."""
    file = part.block.file
    placed = []
    for module, source in part.block.sources.items():
        rows, columns = source.shape
        for letter, key, shape in (
            ("B", source.b, (rows, source.rank)),
            ("A", source.a, (source.rank, columns)),
        ):
            stored = file.entries[key]
            entry = Entry(stored.dtype, shape)
            placed.append((f"{index}.{module}.{letter}", entry, (file, stored.start, stored.stop)))
    return sorted(placed, key=lambda item: item[2][1])


def _extend(runs: list[_Run], run: _Run) -> None:
    """Joins `run` to the last one where they touch."""
    file, start, stop = run
    if runs and runs[-1][0] is file and runs[-1][2] == start:
        runs[-1] = (file, runs[-1][1], stop)
    else:
        runs.append(run)
