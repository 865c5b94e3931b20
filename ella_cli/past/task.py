"""What an adapter brings into the record of a past."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from ella_cli.adapter import Adapter
from ella_cli.config import SUMMED_METHODS, MethodName
from ella_cli.errors import AdapterError, NonFiniteError
from ella_cli.past.record import Base, BlockRecord, PastTask

_WHOLE = frozenset(get_args(MethodName)) - SUMMED_METHODS
_LARGEST = 3.4e38  # of float32


def task_of(adapter: Adapter, *, past: Path | None = None, shrink: float | None = None) -> PastTask:
    """The entry of one adapter, measured and hashed.

    Args:
        adapter: what is added.
        past: the file it is added to; the adapter's folder is noted as seen from there.
        shrink: the λ by which it is shrunk first; its norm is then known only when it is added.

    Raises:
        NonFiniteError: a factor holds NaN or infinity.
    """
    widest = max(adapter.names, key=adapter.rank)
    lam = (adapter.manifest or {}).get("lambda")
    return PastTask(
        name=adapter.task,
        digest=adapter.digest,
        update_norm=_norm(adapter),
        rank=adapter.rank(widest),
        scale=adapter.sources[widest].scale,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        lam=float(lam) if isinstance(lam, int | float) and math.isfinite(lam) else None,
        folder="" if past is None else seen_from(past, adapter.path),
        shrink=shrink,
        order_index=order_index_of(adapter),
    )


def order_index_of(adapter: Adapter) -> int | None:
    """Its place in the order it was trained in, from 0; None where its manifest has none."""
    index = (adapter.manifest or {}).get("order_index")
    return index if isinstance(index, int) and index >= 0 else None


def next_index(known: Sequence[int | None]) -> int:
    """The place after tasks of these places: none of theirs, also where others were taken out."""
    return max([len(known), *(index + 1 for index in known if index is not None)])


def objections(adapter: Adapter, held: Collection[str], whole: str) -> list[str]:
    """What an adapter's manifest says against adding it to others: a sentence for each.

    Args:
        held: the tasks that it is added to.
        whole: what they are, as "this past".
    """
    manifest = adapter.manifest or {}
    found = []
    if held and manifest.get("method") in _WHOLE:
        found.append(
            f"{adapter.path} is of method {manifest['method']}, a model by itself and no term of a "
            "sum: nobody trained what comes out"
        )
    learnt_on = (manifest.get("past") or {}).get("tasks") or []
    missing = [task for task in learnt_on if task not in held]
    if missing:
        found.append(f"{adapter.task} was trained on top of {', '.join(missing)}, not in {whole}")
    return found


def base_of(adapters: Sequence[Adapter]) -> Base:
    """The first base model that an adapter names, with the first fingerprint."""
    bases = [_base(adapter) for adapter in adapters]
    return Base(
        model=next((base.model for base in bases if base.model), ""),
        fingerprint=next((base.fingerprint for base in bases if base.fingerprint), ""),
        task_type=next((base.task_type for base in bases if base.task_type), None),
        fan_in_fan_out=any(base.fan_in_fan_out for base in bases),
    )


def block_record(adapter: Adapter) -> BlockRecord:
    scales = {name: source.scale for name, source in adapter.sources.items()}
    usual = Counter(scales.values()).most_common(1)[0][0]
    others = {name: scale for name, scale in scales.items() if scale != usual}
    return BlockRecord(1, adapter.digest, usual, others)


def _base(adapter: Adapter) -> Base:
    manifest: Mapping[str, Any] = adapter.manifest or {}
    base = manifest.get("base")
    known = base if isinstance(base, dict) else {}
    try:
        return Base(
            model=str(known.get("model") or adapter.base_model),
            fingerprint=str(known.get("fingerprint") or ""),
            task_type=adapter.task_type,
            fan_in_fan_out=adapter.fan_in_fan_out,
        )
    except ValueError as error:
        raise AdapterError(
            f"{adapter.path}: {error}", hint="the file was changed by hand; restore it"
        ) from error


def _norm(adapter: Adapter) -> float:
    squares = []
    for name in adapter.names:
        norm = adapter.update(name).norm
        if not norm <= _LARGEST:
            raise NonFiniteError(
                f"{adapter.path}: the update of {name} is not finite, or too large for float32",
                hint="its training diverged; train it again with a lower learning rate",
            )
        squares.append(norm**2)
    return math.sqrt(math.fsum(squares))


def seen_from(past: Path, folder: Path) -> str:
    """An adapter's folder as a past file's record names it: from where the file lies."""
    try:
        seen = Path(os.path.relpath(folder.resolve(), past.parent.resolve())).as_posix()
        # A name that is no text cannot stand in a JSON; --from names the folder then.
        return os.fsencode(seen).decode(errors="replace")
    except ValueError:
        # Another drive on Windows.
        return folder.resolve().as_posix()
