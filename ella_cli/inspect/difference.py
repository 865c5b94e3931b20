"""How far two pasts, or two adapters, are apart, module by module; from factors where they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.errors import SettingsError, StorageError
from ella_cli.inspect.products import as_factors, cosine, inner, norm
from ella_cli.inspect.task_updates import signed_sum
from ella_cli.inspect.tiles import row_blocks
from ella_cli.kernels import Factors
from ella_cli.past import Past, read_past

Matrix = Tensor | Factors


@dataclass(frozen=True)
class ModuleDifference:
    """`relative` is ‖A − B‖ over the larger of the two norms; None where both are 0."""

    name: str
    norm_a: float
    norm_b: float
    difference: float
    relative: float | None
    cosine: float | None


@dataclass(frozen=True)
class Difference:
    """`same` is equality of content digests, to the bit; the modules then are not compared."""

    kind: Literal["pasts", "adapters"]
    a: str
    b: str
    same: bool
    facts: tuple[tuple[str, str, str], ...]
    modules: tuple[ModuleDifference, ...]
    total: ModuleDifference | None
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shape: tuple[str, ...]


def difference(a: Path, b: Path) -> Difference:
    """Compares two pasts by their signed sums, or two adapters by their ΔW.

    Raises:
        SettingsError: one is a past and the other an adapter.
        StorageError: one is not there.
        PastError, AdapterError: one cannot be read.
    """
    for path in (a, b):
        if not path.exists():
            raise StorageError(
                f"there is no {path}", hint="name two W_past files, or two adapters' folders"
            )
    if a.is_dir() != b.is_dir():
        adapter, past = (a, b) if a.is_dir() else (b, a)
        raise SettingsError(
            f"{adapter} is a folder and {past} a file",
            hint="compare two pasts or two adapters; `ella inspect overlap` sets one against "
            "the other",
        )
    if a.is_dir():
        one, two = read_adapter(a), read_adapter(b)
        return _compare("adapters", a, b, one, two, _adapter_facts(one, two))
    first, second = read_past(a), read_past(b)
    return _compare("pasts", a, b, first, second, _past_facts(first, second))


def _compare(
    kind: Literal["pasts", "adapters"],
    path_a: Path,
    path_b: Path,
    a: Adapter | Past,
    b: Adapter | Past,
    facts: tuple[tuple[str, str, str], ...],
) -> Difference:
    names_a, names_b = set(a.names), set(b.names)
    common = [name for name in a.names if name in names_b]
    other_shape = tuple(name for name in common if a.shape(name) != b.shape(name))
    same = a.digest == b.digest
    modules = []
    if not same:
        modules = [
            _module(name, _matrix(a, name), _matrix(b, name))
            for name in common
            if name not in other_shape
        ]
    return Difference(
        kind=kind,
        a=str(path_a),
        b=str(path_b),
        same=same,
        facts=facts,
        modules=tuple(modules),
        total=_total(modules) if modules else None,
        only_in_a=tuple(name for name in a.names if name not in names_b),
        only_in_b=tuple(name for name in b.names if name not in names_a),
        other_shape=other_shape,
    )


def _matrix(source: Adapter | Past, name: str) -> Matrix:
    if isinstance(source, Adapter):
        return as_factors(source.update(name))
    factors = signed_sum(source, name)
    return source.delta(name) if factors is None else factors


def _module(name: str, a: Matrix, b: Matrix) -> ModuleDifference:
    if isinstance(a, Factors) and isinstance(b, Factors):
        apart = norm(
            Factors(
                torch.cat([a.p.double(), -b.p.double()], dim=1),
                torch.cat([a.q.double(), b.q.double()]),
            )
        )
        return _figures(name, norm(a), norm(b), apart, inner(a, b))
    squares = [0.0, 0.0, 0.0, 0.0]
    for one, two in _paired_blocks(a, b):
        for index, product in enumerate((one * one, two * two, (one - two).square(), one * two)):
            squares[index] += float(product.sum())
    return _figures(
        name, math.sqrt(squares[0]), math.sqrt(squares[1]), math.sqrt(squares[2]), squares[3]
    )


def _paired_blocks(a: Matrix, b: Matrix) -> Iterator[tuple[Tensor, Tensor]]:
    for (_, one), (_, two) in zip(row_blocks(a), row_blocks(b), strict=True):
        yield one, two


def _figures(name: str, a: float, b: float, apart: float, product: float) -> ModuleDifference:
    larger = max(a, b)
    return ModuleDifference(
        name, a, b, apart, apart / larger if larger > 0 else None, cosine(product, a, b)
    )


def _total(modules: list[ModuleDifference]) -> ModuleDifference:
    a = math.sqrt(math.fsum(m.norm_a**2 for m in modules))
    b = math.sqrt(math.fsum(m.norm_b**2 for m in modules))
    apart = math.sqrt(math.fsum(m.difference**2 for m in modules))
    product = math.fsum((m.cosine or 0.0) * m.norm_a * m.norm_b for m in modules)
    return _figures("all modules", a, b, apart, product)


def _past_facts(a: Past, b: Past) -> tuple[tuple[str, str, str], ...]:
    return (
        ("stored", a.store, b.store),
        ("energy", a.record.energy.words, b.record.energy.words),
        ("base model", a.base.model or "–", b.base.model or "–"),
        ("base fingerprint", a.base.fingerprint[:12] or "–", b.base.fingerprint[:12] or "–"),
        ("tasks", _tasks(a), _tasks(b)),
        ("modules", str(len(a.names)), str(len(b.names))),
        ("digest", a.digest[:12], b.digest[:12]),
    )


def _adapter_facts(a: Adapter, b: Adapter) -> tuple[tuple[str, str, str], ...]:
    return (
        ("task", a.task, b.task),
        ("base model", a.base_model or "–", b.base_model or "–"),
        ("modules", str(len(a.names)), str(len(b.names))),
        ("ranks", _ranks(a), _ranks(b)),
        ("digest", a.digest[:12], b.digest[:12]),
    )


def _tasks(past: Past) -> str:
    return ", ".join(task.name for task in past.tasks) or "none"


def _ranks(adapter: Adapter) -> str:
    ranks = sorted({adapter.rank(name) for name in adapter.names})
    return ", ".join(str(rank) for rank in ranks)
