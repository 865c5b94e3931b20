"""Curvature of a task just learned: how much its loss rises when a module's weights move.

A few batches of its training rows run through the model as it stands. At each answer token the
model's own chances are probed (the true Fisher matrix, not the empirical one), after the given
tokens before it. Only module inputs and output gradients are looked at: no weight needs one.

Blocks of one module each miss that modules act together: what training pushes, it pushes the same
way in every layer, and the square of a sum of L like terms is L times the sum of their squares. A
second look at the rows finds the directions of all modules that this is about (`directions`). A
third, where it is asked for, is at their answers to one another's questions, and tells how much was
learned (`learned`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ella_cli.curvature.directions import Together
from ella_cli.curvature.estimate import Moments, fisher_probe, low_rank
from ella_cli.curvature.learned import to_other_questions, total_loss
from ella_cli.curvature.sketch import PsdSums
from ella_cli.curvature.tokens import Tokens, not_finite, token_gradients, watched
from ella_cli.errors import NonFiniteError
from ella_cli.kernels import Kronecker
from ella_cli.model.base import Base
from ella_cli.model.lora import lora_layers
from ella_cli.progress import Advance

# Rows that were not looked at need other directions too, and an optimiser finds those that the
# measured rows left free, so this share of each trace is spread evenly. Chosen on held-out rows of
# twenty tasks among 0, 0.05, 0.1 and 0.3, which learned too little (docs/decisions/0007).
SHRINKAGE = 0.05

# At factors and at directions; a third is at the answers to other questions.
LOOKS = 2


@dataclass(frozen=True, eq=False)
class Measured:
    """The curvature of one task, in nats per answer token.

    Attributes:
        modules: name -> G ⊗ C and directions: together the expected rise of the task's loss.
        dropped: name -> the shares of the traces of G and C whose eigenvectors were cut off.
        held: name -> the share of its trace that the directions hold.
        rows: examples looked at.
        tokens: their answer tokens.
        loss: cross-entropy of the rows' answers, nats an answer.
        contrast: how much more the answers cost to one another's questions, nats an answer; None
            where it was not asked for, and of a single row.
    """

    modules: Mapping[str, Kronecker]
    dropped: Mapping[str, tuple[float, float]]
    held: Mapping[str, float]
    rows: int
    tokens: int
    loss: float
    contrast: float | None


def measure_curvature(
    base: Base,
    model: nn.Module,
    rows: Sequence[Mapping[str, list[int]]],
    *,
    rank: int,
    seed: int,
    batch_size: int = 8,
    contrast: bool = False,
    advance: Advance = lambda done, words: None,
) -> Measured:
    """Looks at `rows` with the model as it stands (past folded in, adapter on, dropout off).

    Args:
        base: the base model.
        model: the PEFT model on it, with the task's trained adapter.
        rows: what `Encoder.example` gives, in an order that says nothing.
        rank: eigenvectors kept of each G and each C.
        seed: of the probes.
        batch_size: sequences a pass.
        contrast: whether to exchange answers too.
        advance: told of every batch, of each of `LOOKS` looks at the rows, one more with contrast.

    Raises:
        NonFiniteError: a module's curvature, or the loss of an answer, is infinite or NaN.
    """
    layers: dict[str, Any] = dict(lora_layers(model))
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    generator = torch.Generator().manual_seed(seed)
    sums = PsdSums(rank, seed)
    moments: dict[str, Moments] = {}
    tokens, loss = 0, 0.0
    others: float | None = None
    was_training = base.model.training
    base.model.train(False)
    try:
        with watched(layers) as seen:
            look = partial(_look, base, ordered, batch_size, generator, seen, advance)
            for count, nats, looked_at in look():
                tokens += count
                loss += nats
                for name, (x, g) in looked_at.items():
                    if name not in moments:
                        moments[name] = Moments(
                            sums.of(g.shape[-1], g.device), sums.of(x.shape[-1], g.device)
                        )
                    moments[name].add(x, g)
            modules, dropped = _factored(moments, rank, tokens)
            together = Together(modules, len(ordered))
            for _, _, looked_at in look():
                together.add(looked_at)
            if contrast and len(rows) > 1:
                paired = to_other_questions(base, rows)
                others = total_loss(base, paired, batch_size, advance)
    finally:
        base.model.train(was_training)
    joined, held = together.joined(tokens)
    count = len(ordered)
    if not math.isfinite(loss + (others or 0.0)):
        raise NonFiniteError(
            "the loss of the measured rows is not finite",
            hint="the model's activations overflow; use --dtype float32 or bfloat16",
        )
    apart = None if others is None else (others - loss) / count
    return Measured(joined, dropped, held, count, tokens, loss / count, apart)


def _look(
    base: Base,
    rows: Sequence[Mapping[str, list[int]]],
    batch_size: int,
    generator: torch.Generator,
    seen: Tokens,
    advance: Advance,
) -> Iterator[tuple[int, float, Tokens]]:
    """Of each batch, freshly probed: its answer tokens, their loss, what layers take and get."""
    collate = base.collator()
    for start in range(0, len(rows), batch_size):
        with torch.enable_grad():
            logits, labels = base.answer_logits(collate(rows[start : start + batch_size]))
            nats = float(nn.functional.cross_entropy(logits.detach(), labels, reduction="sum"))
            probe = fisher_probe(logits.detach().softmax(-1), generator)
            looked_at = token_gradients(logits, probe, seen)
        yield len(labels), nats, looked_at
        # Not held by anyone through the next pass, whose activations need the room.
        looked_at.clear()
        seen.clear()
        del logits, probe
        advance(1, "")


def _factored(
    moments: Mapping[str, Moments], rank: int, tokens: int
) -> tuple[dict[str, Kronecker], dict[str, tuple[float, float]]]:
    """G ⊗ C of each module, and what was cut off of their traces."""
    modules, dropped = {}, {}
    for name, moment in moments.items():
        if not (moment.g.kept.isfinite().all() and moment.c.kept.isfinite().all()):
            raise not_finite(name)
        # G in nats per answer token; C without units, of trace 1.
        square = moment.square
        g = low_rank(moment.g, square, 1 / max(tokens, 1), rank, SHRINKAGE)
        c = low_rank(moment.c, square, 1 / (square or 1.0), rank, SHRINKAGE)
        modules[name] = Kronecker(g.factor.cpu(), c.factor.cpu(), g.floor, c.floor)
        dropped[name] = (g.dropped, c.dropped)
    return modules, dropped
