"""W_past and its energy as a dense file, f32 or rounded once to bf16."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ella_cli.adapter.tensor_file import bytes_of
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import PastError
from ella_cli.kernels import Factors
from ella_cli.past.curvatures import copy_curvatures, curvature_layout
from ella_cli.past.dense import DELTA, ENERGY, DenseStore
from ella_cli.past.export.card import write_card
from ella_cli.past.export.exported import Exported, empty_folder
from ella_cli.past.past import Past
from ella_cli.past.record import NO_DIGEST
from ella_cli.past.task import seen_from

_FILE = "wpast.safetensors"
_DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}


def export_dense(
    past: Past, folder: Path, *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Exported:
    """Writes `folder`/wpast.safetensors, a W_past file with one matrix a module.

    Args:
        past: of either store.
        folder: must not hold anything yet.
        dtype: bfloat16 halves the file; nothing can be accumulated into it any more.

    Raises:
        PastError: no task in it, it is a bf16 copy and f32 is asked for, or the file is damaged.
        StorageError: the folder is not empty or cannot be written.
    """
    if not past.names:
        raise PastError(f"{past.path} holds no task", hint="accumulate an adapter first")
    stored, torch_dtype = _DTYPES[dtype]
    if isinstance(past.contents, DenseStore) and past.contents.is_rounded and stored == "F32":
        raise PastError(
            f"{past.path} is a bf16 copy; in f32 it would pass for the sums it was rounded from",
            hint="export from the f32 file, or give --dtype bfloat16",
        )
    parts = (DELTA,) if past.record.energy.is_plain else (DELTA, ENERGY)
    layout = {
        f"{name}.{part}": Entry(stored, past.shape(name)) for name in past.names for part in parts
    }
    store_keys = tuple(layout)
    layout |= curvature_layout(past.curvatures)
    tasks = tuple(
        replace(task, folder=seen_from(folder / _FILE, lies)) if lies is not None else task
        for task in past.tasks
        for lies in [past.folder_of(task)]
    )
    layers = {name: past.layer(name) for name in past.names}
    record = replace(
        past.record,
        store="dense",
        tasks=tasks,
        blocks=(),
        layers={name: layer for name, layer in layers.items() if layer.kind != "linear"},
        checksums=dict.fromkeys(store_keys, NO_DIGEST),
    ).sealed()
    checksums = {}
    exactness = "f32 sums" if dtype == "float32" else "f32 sums rounded once to bf16"
    with empty_folder(folder) as temporary:
        path = temporary / _FILE
        with TensorFileWriter(path, layout, record.metadata()) as writer:
            for name in past.names:
                for part in parts:
                    matrix = _matrix(past, name, part).to(torch_dtype)  # (M, N)
                    checksums[f"{name}.{part}"] = hashlib.sha256(bytes_of(matrix)).hexdigest()
                    writer.write(matrix)
            copy_curvatures(past.curvatures, writer)
            writer.finish(replace(record, checksums=checksums).sealed().metadata())
        write_card(temporary, past, "dense past", exactness, past.base.model)
    return Exported(folder, "dense past", exactness)


def _matrix(past: Past, name: str, part: str) -> Tensor:
    if part == DELTA:
        return past.delta(name)
    operand = past.operand(name)
    return operand.dense() if isinstance(operand, Factors) else operand
