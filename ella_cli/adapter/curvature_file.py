"""`curvature.safetensors`, the curvature beside an adapter: read and checked, or written whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ella_cli.adapter.adapter import Adapter, layers_in_order
from ella_cli.adapter.curvature import LETTERS, Curvature, check_version, curvature_keys
from ella_cli.adapter.curvature_record import (
    DIRECTIONS_VERSION,
    IMPORTANCE_VERSION,
    METADATA_KEY,
    RECORD,
    CurvatureRecord,
    curvature_digest,
    read_record,
)
from ella_cli.adapter.tensor_file import TensorFile, bytes_of, dtype_name
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import AdapterError
from ella_cli.files import replacing
from ella_cli.kernels import Kronecker

CURVATURE = "curvature.safetensors"


def write_curvature(
    folder: Path, modules: Mapping[str, Kronecker], record: CurvatureRecord
) -> CurvatureRecord:
    """Writes `curvature.safetensors` into an adapter's folder, whole or not at all; bf16.

    Returns:
        The record with its digest.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    import torch

    tensors = {}
    for name in sorted(modules, key=layers_in_order):
        one = modules[name]
        for letter, part in zip(LETTERS, (one.u, one.v, one.directions), strict=True):
            if part is not None:
                tensors[f"{name}.{letter}"] = part.to(torch.bfloat16).contiguous()
    floors = {name: (one.u_floor, one.v_floor) for name, one in modules.items()}
    layout = {key: Entry(dtype_name(t), tuple(t.shape)) for key, t in tensors.items()}
    sums = [(key, hashlib.sha256(bytes_of(t)).hexdigest()) for key, t in tensors.items()]
    record = record.with_floors(floors)
    if any(one.directions is not None for one in modules.values()):
        record = replace(record, version=DIRECTIONS_VERSION)
    if record.importance != 1:
        record = replace(record, version=IMPORTANCE_VERSION)
    digest = curvature_digest(sums, layout, record)
    record = replace(record, digest=digest, measured=digest)
    metadata = {"format": "pt", METADATA_KEY: RECORD.dump_json(record).decode()}
    with (
        replacing(folder / CURVATURE) as temporary,
        TensorFileWriter(temporary, layout, metadata) as writer,
    ):
        for tensor in tensors.values():
            writer.write(tensor)
        writer.finish(metadata)
    return record


def has_curvature(adapter: Adapter) -> bool:
    """Whether a curvature lies beside it; it is not looked into."""
    return (adapter.path / CURVATURE).is_file()


def read_curvature(adapter: Adapter) -> Curvature | None:
    """The curvature beside an adapter; None where none was measured.

    Raises:
        AdapterError: the file is damaged, of a later version, of another adapter, or its shapes
            are not the adapter's.
    """
    path = adapter.path / CURVATURE
    if not path.is_file():
        return None
    file = TensorFile.open(path, AdapterError)
    record = read_record(file.metadata.get(METADATA_KEY), path)
    if record.adapter != adapter.digest:
        raise AdapterError(
            f"{path} was measured for another adapter than the one beside it",
            hint="measure it again with `ella measure`, or take the file away",
        )
    curvature = Curvature(record, file, curvature_keys(file, file.entries, "", AdapterError))
    check_version(curvature, AdapterError)
    for name in curvature.names:
        if name not in adapter.sources or curvature.shape(name) != adapter.shape(name):
            raise AdapterError(
                f"{path}: {name} is {curvature.shape(name)}, which the adapter does not adapt so",
                hint="measure it again with `ella measure`, or take the file away",
            )
    return curvature
