"""The whole Fisher matrix's prediction, no block and no product in it: what an estimate can reach.

At logits with chances p, probed by d with E[d dᵀ] = diag(p) − p pᵀ, an update moves an example's
probed logits by s = Σ_modules Σ_tokens g_tᵀ ΔW x_t, and E[½ Σ s²] is its divergence to second
order: tokens and modules act together as they do. Nothing is stored and nothing can be a penalty,
for it needs the rows; what it misses, any curvature misses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from ella_cli.adapter import Update
from ella_cli.curvature.estimate import fisher_probe
from ella_cli.curvature.tokens import Tokens, token_gradients, watched
from ella_cli.model.base import Base

_BATCH = 8


def exact_rises(
    base: Base,
    rows: Sequence[Mapping[str, list[int]]],
    steps: Sequence[Mapping[str, Update]],
    *,
    probes: int,
    seed: int,
) -> list[float]:
    """The second-order divergence of each of `steps`, nats per answer token, the model as it is.

    Args:
        rows: what `Encoder.example` gives.
        steps: updates by module name, each tried by itself.
        probes: random signs a row; the mean square of S rows with P probes is uncertain by about
            √(2 / (S · P)) of itself.
    """
    names = dict.fromkeys(name for step in steps for name in step)
    squares, tokens = torch.zeros(len(steps), dtype=torch.float64), 0
    for count, looked_at in probed(base, rows, names, probes=probes, seed=seed):
        tokens += count
        squares += _moves(steps, looked_at).square().sum(dim=1)
    return [float(square) / 2 / tokens for square in squares]


def probed(
    base: Base,
    rows: Sequence[Mapping[str, list[int]]],
    names: Iterable[str],
    *,
    probes: int,
    seed: int,
) -> Iterator[tuple[int, Tokens]]:
    """Of each batch and probe: its answer tokens, and what the named modules take and get."""
    collate, generator = base.collator(), torch.Generator().manual_seed(seed)
    layers = {name: base.model.get_submodule(name) for name in names}
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    with watched(layers) as seen:
        for _, start in product(range(probes), range(0, len(ordered), _BATCH)):
            with torch.enable_grad():
                logits, labels = base.answer_logits(collate(ordered[start : start + _BATCH]))
            probe = fisher_probe(logits.detach().softmax(-1), generator)
            yield len(labels), token_gradients(logits, probe, seen)
            seen.clear()


def _moves(steps: Sequence[Mapping[str, Update]], looked_at: Tokens) -> Tensor:
    """What each step moves each example by, (steps, S) f64."""
    moves = torch.zeros(len(steps), len(next(iter(looked_at.values()))[0]), dtype=torch.float64)
    for name, (x, g) in looked_at.items():
        # Steps are parts and multiples of few updates, and those stand side by side.
        distinct = {id(step[name].b): step[name] for step in steps if name in step}
        b = torch.cat([one.b for one in distinct.values()], dim=1)  # (M, ΣR)
        a = torch.cat([one.a for one in distinct.values()])  # (ΣR, N)
        moved = ((g.float() @ b) * (x.float() @ a.T)).sum(dim=1, dtype=torch.float64)  # (S, ΣR)
        parts = torch.split(moved, [one.b.shape[1] for one in distinct.values()], dim=1)
        by_update = {key: part.sum(dim=1) for key, part in zip(distinct, parts, strict=True)}
        for move, step in zip(moves, steps, strict=True):
            if name in step:
                move += step[name].scale * by_update[id(step[name].b)]
    return moves
