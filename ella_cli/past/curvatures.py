"""The curvatures of the past's tasks, as further tensors of its file: `curvature/0/<module>.U`.

They are copied from an adapter's file or from the old past, never merged: a sum of Kronecker
products is no Kronecker product, so the tasks stay apart, and each can be taken out again. Where
all of them would take more than W_past as matrices, each keeps fewer eigenvectors, but never so few
that it protects noticeably less.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ella_cli.adapter.curvature import Curvature, check_version, curvature_keys
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import PastError
from ella_cli.past.record import Record

# No module's name has a slash, so that no other tensor begins like this.
_PREFIX = "curvature/"

# Of the traces, in the mean. A model of width 64 kept its 20 tasks with 7 % cut off as well as with
# 1 %, and fewer of them with 16 % (docs/results/choices.md).
MOST_DROPPED = 0.05


def other_entries(file: TensorFile) -> Mapping[str, Entry]:
    """The file's tensors that belong to its store."""
    return {key: entry for key, entry in file.entries.items() if not key.startswith(_PREFIX)}


def curvatures_of(file: TensorFile, record: Record) -> tuple[Curvature, ...]:
    """
    Raises:
        PastError: tensors and record do not belong together.
    """
    by_number: dict[str, dict[str, Entry]] = {str(i): {} for i in range(len(record.curvature))}
    for key, entry in file.entries.items():
        if not key.startswith(_PREFIX):
            continue
        number = key.removeprefix(_PREFIX).partition("/")[0]
        if number not in by_number:
            raise PastError(
                f"{file.path}: the tensor {key[:100]} belongs to no curvature of its record",
                hint="the file was changed by hand; restore it, or accumulate the adapters again",
            )
        by_number[number][key] = entry
    found = tuple(
        Curvature(one, file, curvature_keys(file, keys, f"{_PREFIX}{number}/", PastError))
        for one, (number, keys) in zip(record.curvature, by_number.items(), strict=True)
    )
    for one in found:
        check_version(one, PastError)
    return found


def measured_anew(held: Curvature | None, found: Curvature | None) -> bool:
    """Whether an adapter's curvature is another than the one held, which may have been cut."""
    if found is None:
        return False
    if held is None:
        return True
    if held.record.measured or found.record.measured:
        return held.record.measured != found.record.measured

    def plain(one: Curvature) -> CurvatureRecord:
        # All that cutting changes.
        return replace(one.record, dropped={}, floors={}, digest="", version=0)

    return plain(held) != plain(found)


def curvature_layout(curvatures: Sequence[Curvature]) -> dict[str, Entry]:
    """Name -> dtype and shape of their tensors in the next file, in order."""
    return {new: curvature.entry(key) for new, curvature, key in _tensors(curvatures)}


def fit_curvatures(curvatures: Sequence[Curvature], room: int) -> tuple[Curvature, ...]:
    """The curvatures, cut to one rank of G for all so that they fit into `room` bytes.

    Of C each keeps as many columns as lose no larger a share of its trace: inputs need far fewer
    than outputs. Each keeps as many columns as it needs for `MOST_DROPPED`, whatever that rank and
    the room. What was cut off before stays off: an early task may have fewer than a late one.

    Raises:
        AdapterError: one that must be truncated is damaged.
    """
    if sum(one.nbytes for one in curvatures) <= room:
        return tuple(curvatures)
    spectra = [_Spectra.of(one) for one in curvatures]
    least = [one.least() for one in spectra]

    def ranks(rank: int) -> list[tuple[int, int] | None]:
        """Of each task, None where it stays whole."""
        asked = (one.ranks(max(rank, few)) for one, few in zip(spectra, least, strict=True))
        return [
            None if pair == spectrum.whole else pair
            for pair, spectrum in zip(asked, spectra, strict=True)
        ]

    widest = max(one.whole[0] for one in spectra)
    fits = bisect_right(range(1, widest + 1), room, key=lambda r: _bytes_at(curvatures, ranks(r)))
    return tuple(
        one if pair is None else one.truncated(*pair)
        for one, pair in zip(curvatures, ranks(fits), strict=True)
    )


@dataclass(frozen=True)
class _Spectra:
    """What is cut off of a task's G and C past 0, 1, 2, … columns, in the mean of its modules.

    Attributes:
        g, c: shares of the traces, falling; what was cut off before is in them.
    """

    g: Sequence[float]
    c: Sequence[float]

    @classmethod
    def of(cls, curvature: Curvature) -> _Spectra:
        if not curvature.names:
            return cls((0.0,), (0.0,))
        sides = zip(*(curvature.tails(name) for name in curvature.names), strict=True)
        return cls(*([statistics.fmean(at) for at in _lengthened(tails)] for tails in sides))

    @property
    def whole(self) -> tuple[int, int]:
        """Columns of the widest U and of the widest V."""
        return len(self.g) - 1, len(self.c) - 1

    def ranks(self, rank: int) -> tuple[int, int]:
        """Columns of U and of V; of V the fewest that keep as large a share."""
        widest, most = self.whole
        rank = min(rank, widest)
        # But for rounding.
        share = self.g[rank] * 1.001
        return rank, next((k for k, gone in enumerate(self.c) if k and gone <= share), most)

    def least(self) -> int:
        """The fewest columns of U with which no more than `MOST_DROPPED` is cut off; else all."""
        enough = (k for k, share in enumerate(self.g) if k and share <= MOST_DROPPED)
        return next(enough, self.whole[0])


def _lengthened(tails: Sequence[Sequence[float]]) -> Iterator[tuple[float, ...]]:
    """By number of columns: each module's share, its last one where it has no more columns."""
    for columns in range(max(map(len, tails))):
        yield tuple(tail[min(columns, len(tail) - 1)] for tail in tails)


def _bytes_at(curvatures: Sequence[Curvature], ranks: Sequence[tuple[int, int] | None]) -> int:
    return sum(
        one.nbytes if pair is None else replace(one, ranks=pair).nbytes
        for one, pair in zip(curvatures, ranks, strict=True)
    )


def copy_curvatures(curvatures: Sequence[Curvature], writer: TensorFileWriter) -> None:
    """Writes them, in the order of `curvature_layout`, as the next tensors of a file.

    Raises:
        AdapterError: one is damaged.
    """
    for curvature in curvatures:
        curvature.verify()
    for _, curvature, key in _tensors(curvatures):
        entry = curvature.file.entries[key]
        if curvature.ranks is None:
            writer.copy(curvature.file, entry.start, entry.stop)
        else:
            writer.write(curvature.factor(key))


def write_curvatures(curvatures: Sequence[Curvature], writer: TensorFileWriter) -> None:
    """As `copy_curvatures`, for a file that is written part by part."""
    for curvature in curvatures:
        curvature.verify()
    for new, curvature, key in _tensors(curvatures):
        writer.write_part(new, 0, curvature.factor(key))


def _tensors(curvatures: Sequence[Curvature]) -> list[tuple[str, Curvature, str]]:
    """New name, whose it is, and its name there."""
    return [
        (f"{_PREFIX}{number}/{name}{key[-2:]}", curvature, key)
        for number, curvature in enumerate(curvatures)
        for name, names in curvature.keys.items()
        for key in names
    ]
