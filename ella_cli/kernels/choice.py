"""Chooses each module's form: the cheapest one that is also accurate and fits the memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import psutil
import torch

from ella_cli.errors import SettingsError
from ella_cli.kernels.cost import Work, cheapest, rates_of
from ella_cli.kernels.form import AUTO, EAGER, FUSED, GRAM, TILED
from ella_cli.kernels.operands import Factors, Past

# W_past multiplied out may take this share of the memory that is free when a plan is made.
_SHARE_FOR_DENSE = 0.5

# ‖PQ‖² over Σ_k ‖p_k‖²‖q_k‖²: 1 for unrelated tasks, less where updates undo each other. Below
# this the Gram form would often find that too little is left of its terms, and be computed twice.
_LEAST_UNCANCELLED = 0.1


def choose_forms(
    pasts: Sequence[Past],
    ranks: Sequence[int],
    names: Sequence[str],
    *,
    form: str,
    calls: float,
) -> list[str]:
    """
    Raises:
        SettingsError: the form needs factors and a past is dense.
    """
    if form != AUTO:
        for past, name in zip(pasts, names, strict=True):
            if form not in (EAGER, FUSED) and not isinstance(past, Factors):
                raise SettingsError(
                    f"form {form!r} needs the factors of W_past; that of {name} is dense",
                    hint="use form auto or fused, or a factored past",
                )
        return [form] * len(pasts)
    room: dict[torch.device, float] = {}
    alike = Counter(map(_kind, pasts, ranks))
    forms = []
    for past, rank in zip(pasts, ranks, strict=True):
        dense = dense_bytes(past) if isinstance(past, Factors) else 0
        left = room.setdefault(past.device, _SHARE_FOR_DENSE * free_bytes(past.device))
        chosen = _choose(past, rank, alike[_kind(past, rank)], calls, may_be_dense=dense <= left)
        if chosen == FUSED:
            room[past.device] = left - dense
        forms.append(chosen)
    return forms


def _kind(past: Past, rank: int) -> tuple[object, ...]:
    """What modules that can be stacked have in common."""
    past_rank = past.rank if isinstance(past, Factors) else None
    return (*past.shape, rank, past_rank, past.device)


def _choose(past: Past, rank: int, alike: int, calls: float, *, may_be_dense: bool) -> str:
    if not isinstance(past, Factors):
        return FUSED
    work = Work(past.shape[0], past.shape[1], rank, past.rank, alike)
    among = [form for form in (FUSED, TILED, GRAM) if form != FUSED or may_be_dense]
    best = cheapest(work, rates_of(past.device), among=among, calls=calls)
    if best == GRAM and uncancelled(past) < _LEAST_UNCANCELLED:
        among.remove(GRAM)
        best = cheapest(work, rates_of(past.device), among=among, calls=calls)
    return best


def dense_bytes(past: Factors) -> int:
    """What `past.dense()` takes."""
    return past.shape[0] * past.shape[1] * (8 if past.p.dtype == torch.float64 else 4)


def uncancelled(past: Factors) -> float:
    """‖PQ‖²_F / Σ_k ‖p_k‖² ‖q_k‖², from Gram matrices; 1 if the past is empty or zero."""
    p, q = past.p.double(), past.q.double()
    of_p, of_q = p.T @ p, q @ q.T  # (R_past, R_past)
    apart = float((of_p.diagonal() * of_q.diagonal()).sum())
    return float((of_p * of_q).sum()) / apart if apart > 0 else 1.0


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    # Pages that cache files count as free: whoever has just loaded a model has many of them.
    return int(psutil.virtual_memory().available)
