"""Where a curvature comes from: the record in the header of its file, or of a past's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from ella_cli.adapter.adapter import layers_in_order
from ella_cli.adapter.tensor_header import Entry
from ella_cli.errors import AdapterError, EllaError
from ella_cli.names import is_nameable

METADATA_KEY = "ella_curvature"
# 2 is 1 with floors, 3 has directions too: a reader of less would leave out part of what protects.
# 4 does not count in full, which such a reader would make it do.
PLAIN_VERSION, FLOORS_VERSION, DIRECTIONS_VERSION, IMPORTANCE_VERSION = 1, 2, 3, 4

Finite = Annotated[float, Field(allow_inf_nan=False)]
# As `--importance` takes it: what counts for nothing is left out by --last or --drop.
Importance = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Floor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class CurvatureRecord:
    """Where a curvature comes from.

    Attributes:
        adapter: digest of the adapter whose task it is.
        task: its name.
        model, fingerprint: the base model; `past`, what was folded into it beside the adapter.
        data: fingerprint of the task's rows.
        rows, tokens: training rows looked at, and their answer tokens.
        seed: of the probes.
        coherence: by which G was multiplied, since modules act together: 1 where directions say so.
        shrinkage: the share of each trace that was spread evenly; None from an ella that had none
            or did not say.
        dropped: module -> shares of the traces of G and of C whose eigenvectors were cut off.
        floors: module -> γ and κ; none where both are 0.
        contrast: how much more the answers cost to one another's questions, nats an answer; None
            where not measured.
        importance: how much it counts in a penalty; predictions are in full whatever it is.
        digest: over all factors, floors and the importance.
        measured: the digest before anything was cut off; empty from an ella that did not say.
    """

    adapter: str
    task: str
    model: str = ""
    fingerprint: str = ""
    past: str = ""
    data: str = ""
    rows: int = 0
    tokens: int = 0
    seed: int = 0
    coherence: Finite = 1.0
    shrinkage: Finite | None = None
    dropped: Mapping[str, tuple[Finite, Finite]] = field(default_factory=dict)
    floors: Mapping[str, tuple[Floor, Floor]] = field(default_factory=dict)
    contrast: Finite | None = None
    importance: Importance = 1.0
    digest: str = ""
    measured: str = ""
    version: int = PLAIN_VERSION

    def __post_init__(self) -> None:
        if not all(map(is_nameable, (self.task, self.model))):
            raise ValueError("its task or base model has no usable name")

    def with_floors(self, floors: Mapping[str, tuple[float, float]]) -> CurvatureRecord:
        """The same with these floors, of the version that they need."""
        above = {name: pair for name, pair in floors.items() if any(pair)}
        version = max(self.version, FLOORS_VERSION) if above else self.version
        return replace(self, floors=above, version=version)

    def floors_of(self, name: str) -> tuple[float, float]:
        return self.floors.get(name, (0.0, 0.0))


RECORD = TypeAdapter(CurvatureRecord)


def read_record(text: str | None, path: Path) -> CurvatureRecord:
    """
    Raises:
        AdapterError: there is none, it is not sound, or it is of a later version.
    """
    try:
        record = RECORD.validate_json(text or "")
    except ValidationError as error:
        raise AdapterError(
            f"{path} has no sound record {METADATA_KEY} in its header",
            hint="make it again with `ella measure`, or take the file away",
        ) from error
    check_known(record, path, AdapterError)
    return record


def check_known(record: CurvatureRecord, where: object, error: type[EllaError]) -> None:
    """
    Raises:
        error: it is of a later version.
    """
    if not PLAIN_VERSION <= record.version <= IMPORTANCE_VERSION:
        raise error(
            f"{where}: the curvature of {record.task} is of version {record.version}; this ella "
            f"reads {PLAIN_VERSION} to {IMPORTANCE_VERSION}",
            hint="update ella",
        )


def curvature_digest(
    sums: list[tuple[str, str]],
    entries: Mapping[str, Entry],
    record: CurvatureRecord,
) -> str:
    """SHA-256 over lines of factors, floors and importance, as docs/file-formats.md has it.

    Args:
        sums: name of each factor and the SHA-256 of its bytes, in order.
        entries: their dtypes and shapes.
        record: says γ and κ, and the importance.
    """
    digest = hashlib.sha256()
    for key, checksum in sums:
        entry = entries[key]
        digest.update(f"{key} {entry.dtype} {list(entry.shape)} {checksum}\n".encode())
    for name in sorted(record.floors, key=layers_in_order):
        gamma, kappa = record.floors[name]
        digest.update(f"{name} floors {gamma!r} {kappa!r}\n".encode())
    if record.importance != 1:
        digest.update(f"importance {record.importance!r}\n".encode())
    return digest.hexdigest()
