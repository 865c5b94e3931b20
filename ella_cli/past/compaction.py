"""Factors of many tasks rewritten as the fewest that hold the same sum, by QR and SVD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ella_cli.adapter.adapter import Source, tensors_digest
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import PastError, SettingsError
from ella_cli.files import behind_links, replacing
from ella_cli.kernels import Factors
from ella_cli.locks import waiting
from ella_cli.past.curvatures import copy_curvatures, curvature_layout
from ella_cli.past.factored import FactoredStore
from ella_cli.past.past import Past, read_past
from ella_cli.past.record import NO_DIGEST, BlockRecord


@dataclass(frozen=True)
class CompactedModule:
    """`dropped` is the share of ‖W_past‖²_F that was cut off."""

    name: str
    rank_before: int
    rank_after: int
    dropped: float


@dataclass(frozen=True)
class Compacted:
    """No `modules` where the file would not have got smaller and is as it was."""

    past: Past
    modules: tuple[CompactedModule, ...]
    bytes_before: int
    bytes_after: int


def compact(path: Path, *, tolerance: float = 1e-4) -> Compacted:
    """Re-factorises a factored past in place; its tasks can then no longer be told apart.

    Args:
        path: the W_past file.
        tolerance: ‖W_past − its new factors‖_F / ‖W_past‖_F that no module exceeds.

    Raises:
        PastError: a dense store, or an energy that needs the tasks apart.
        SettingsError: a tolerance outside [0, 1).
    """
    check_tolerance(tolerance)
    path = behind_links(path)
    with waiting(path):
        past = read_past(path)
        store = compactable(past)
        found = [
            (name, *truncated(store.factors(name, (1.0,) * len(store.blocks)), tolerance))
            for name in past.names
        ]
        before = path.stat().st_size
        size = sum(factors.p.nbytes + factors.q.nbytes for _, factors, _ in found)
        if size >= sum(block.nbytes for block in store.blocks):
            return Compacted(past, (), before, before)
        with replacing(path) as temporary:
            _write(past, {name: factors for name, factors, _ in found}, temporary)
        return Compacted(
            read_past(path),
            tuple(
                CompactedModule(name, store.rank(name), factors.rank, dropped)
                for name, factors, dropped in found
            ),
            before,
            path.stat().st_size,
        )


def check_tolerance(tolerance: float) -> None:
    """
    Raises:
        SettingsError: it is outside [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise SettingsError(f"--tolerance is {tolerance}", hint="give a number from 0 to below 1")


def truncated(factors: Factors, tolerance: float) -> tuple[Factors, float]:
    """The fewest factors within `tolerance` of P Q in relative Frobenius norm, balanced, f32.

    Returns:
        The factors, of rank 1 at least, and the share of ‖P Q‖²_F that was cut off.
    """
    u, values, v = singular(factors)
    rank = _rank_within(values, tolerance)
    return cut(u, values, v, rank)


def singular(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """P Q = U diag(values) Vᵀ in f64, without making it: U (M, K), values (K,), V (N, K)."""
    q_p, r_p = torch.linalg.qr(factors.p.double())  # (M, K), (K, R_past)
    q_q, r_q = torch.linalg.qr(factors.q.double().T)  # (N, K'), (K', R_past)
    u, values, vh = torch.linalg.svd(r_p @ r_q.T, full_matrices=False)
    return q_p @ u, values, q_q @ vh.T


def cut(u: Tensor, values: Tensor, v: Tensor, rank: int) -> tuple[Factors, float]:
    """The best factors of `rank`, balanced, f32; and the share of the energy that they miss."""
    rank = min(rank, len(values))
    total = float(values.square().sum())
    missed = float(values[rank:].square().sum())
    root = values[:rank].sqrt()
    factors = Factors((u[:, :rank] * root).float(), (v[:, :rank] * root).T.float().contiguous())
    return factors, missed / total if total else 0.0


def _rank_within(values: Tensor, tolerance: float) -> int:
    # Energy that is missed when the first k values are kept, k = 0, 1, ...
    squares = values.square()
    missed = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    # Below f32's own rounding no factor is worth keeping.
    floor = max(tolerance, torch.finfo(torch.float32).eps)
    enough = missed <= floor**2 * missed[0]
    return max(int(enough.int().argmax()), 1)


def compactable(past: Past) -> FactoredStore:
    """The factors that `compact` would rewrite.

    Raises:
        PastError: a dense store, or an energy that needs the tasks apart.
    """
    if not isinstance(past.contents, FactoredStore):
        raise PastError(
            f"{past.path} is dense; only factors can be compacted",
            hint="a dense store does not grow with the number of tasks",
        )
    if not past.record.energy.is_plain:
        raise PastError(
            f"{past.path} has an energy of kind {past.energy} that needs its tasks apart",
            hint="only --energy curvature, or sum without --last and --decay, can be compacted",
        )
    return past.contents


def _write(past: Past, modules: dict[str, Factors], path: Path) -> None:
    layout: dict[str, Entry] = {}
    sources: dict[str, Source] = {}
    for name, factors in modules.items():
        b, a = f"0.{name}.B", f"0.{name}.A"
        layout[b] = Entry("F32", tuple(factors.p.shape))
        layout[a] = Entry("F32", tuple(factors.q.shape))
        sources[name] = Source(b, a, factors.shape, factors.rank, 1.0, past.layer(name))
    layout |= curvature_layout(past.curvatures)
    record = replace(past.record, blocks=(BlockRecord(len(past.tasks), NO_DIGEST),)).sealed()
    with TensorFileWriter(path, layout, record.metadata()) as writer:
        for factors in modules.values():
            writer.write(factors.p)
            writer.write(factors.q)
        copy_curvatures(past.curvatures, writer)
        digest = tensors_digest(sources, _tensors(modules).__getitem__)
        record = replace(record, blocks=(BlockRecord(len(past.tasks), digest),)).sealed()
        writer.finish(record.metadata())


def _tensors(modules: Mapping[str, Factors]) -> dict[str, Tensor]:
    tensors = {f"0.{name}.B": factors.p for name, factors in modules.items()}
    return tensors | {f"0.{name}.A": factors.q for name, factors in modules.items()}
