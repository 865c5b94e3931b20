"""The curvatures of the past's tasks, as further tensors of its file: `curvature/0/<module>.U`.

They are copied from an adapter's file or from the old past, never computed: a sum of Kronecker
products is no Kronecker product, so the tasks stay apart, and each can be taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ella_cli.adapter.curvature import Curvature, curvature_keys
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import PastError
from ella_cli.past.record import Record

# No module's name has a slash, so that no other tensor begins like this.
_PREFIX = "curvature/"


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
    return tuple(
        Curvature(one, file, curvature_keys(file, keys, f"{_PREFIX}{number}/", PastError))
        for one, (number, keys) in zip(record.curvature, by_number.items(), strict=True)
    )


def curvature_layout(curvatures: Sequence[Curvature]) -> dict[str, Entry]:
    """Name -> dtype and shape of their tensors in the next file, in order."""
    return {new: entry for new, _, _, entry in _tensors(curvatures)}


def copy_curvatures(curvatures: Sequence[Curvature], writer: TensorFileWriter) -> None:
    """Writes them, in the order of `curvature_layout`, as the next tensors of a file.

    Raises:
        AdapterError: one is damaged.
    """
    for curvature in curvatures:
        _ = curvature.verified
    for _, file, key, _ in _tensors(curvatures):
        entry = file.entries[key]
        writer.copy(file, entry.start, entry.stop)


def write_curvatures(curvatures: Sequence[Curvature], writer: TensorFileWriter) -> None:
    """As `copy_curvatures`, for a file that is written part by part."""
    for curvature in curvatures:
        _ = curvature.verified
    for new, file, key, _ in _tensors(curvatures):
        writer.write_part(new, 0, file.read(key))


def _tensors(
    curvatures: Sequence[Curvature],
) -> list[tuple[str, TensorFile, str, Entry]]:
    """New name, file, name there, dtype and shape."""
    return [
        (f"{_PREFIX}{number}/{name}.{letter}", curvature.file, key, _plain(curvature, key))
        for number, curvature in enumerate(curvatures)
        for name, pair in curvature.keys.items()
        for letter, key in zip("UV", pair, strict=True)
    ]


def _plain(curvature: Curvature, key: str) -> Entry:
    entry = curvature.file.entries[key]
    return Entry(entry.dtype, entry.shape)
