"""`ella.json`, the record beside an adapter, checked as it is read: it may be a stranger's.

docs/file-formats.md describes it. Keys that are missing are not known; others are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from ella_cli.errors import AdapterError
from ella_cli.files import read_json
from ella_cli.wording import plain

FORMAT = 1
MANIFEST = "ella.json"

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Base(BaseModel):
    model: str | None = None
    fingerprint: str | None = None


class _Past(BaseModel):
    digest: str | None = None
    tasks: list[str] = []


class _Data(BaseModel):
    fingerprint: str | None = None
    train_rows: int | None = None


class _Strength(BaseModel):
    rho: _Finite | None = None


class _Curves(BaseModel):
    step: list[float | None] = []
    ce: list[float | None] = []
    penalty: list[float | None] = []
    weighted_penalty: list[float | None] = []
    update_norm: list[float | None] = []


class _Manifest(BaseModel):
    """What is relied on, and of which type."""

    format: Literal[1]
    task: str | None = None
    order_index: int = 0
    method: str | None = None
    lam: _Finite | None = Field(None, alias="lambda")
    strength: _Strength | None = None
    energy: str | None = None
    seed: int | None = None
    rank: int | None = None
    scale: _Finite | None = None
    base: _Base | None = None
    data: _Data | None = None
    past: _Past | None = None
    update_norm: _Finite | None = None
    update_norms: dict[str, _Finite] = {}
    curves: _Curves | None = None
    seconds: _Finite | None = None
    settings: dict[str, Any] | None = None


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """The manifest of an adapter folder as it is written, None where there is none.

    Raises:
        AdapterError: it is not of format 1, or a value is of another type than it has to be.
        StorageError: it cannot be read, or is not JSON.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    document = read_json(file)
    try:
        # Strict: a number in quotes would go on as text.
        _Manifest.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = f": {where}: {plain(first)}" if where not in ("", "format") else ""
        raise AdapterError(
            f"{file} is not a manifest of format {FORMAT}{what}",
            hint="update ella, or move the file away to take the adapter as a foreign one",
        ) from error
    return MappingProxyType(document)
