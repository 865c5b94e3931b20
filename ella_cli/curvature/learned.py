"""How much of a task was learned, by which what its answers depend on is worth keeping.

A task that was hardly learned answers by chance. The Fisher matrix is largest at such toss-ups, so
by it alone this task would be protected most, though it has least to lose, and later tasks would be
learned less (docs/decisions/0009). What an answer says of its question is its information: with the
loss L of the true answers and S of the same answers to one another's questions, I = S − L, in nats
an answer. The share of variance that a gain of I in log-likelihood explains is

    R² = 1 − exp(−2 I)

which is 0 for chance, 0.18 at 0.1 nats and 0.98 at 2. An answer that is the same whatever the
question tells nothing, but is no toss-up either: exp(−4 L), near 1 where answers are sure (0.06 at
a toss-up between two), counts where it is more.

Source: Cox & Snell 1989, the pseudo-R² of a likelihood, with answers to other questions as the null
model; Linfoot 1957, the informational coefficient of correlation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ella_cli.model.base import Base
from ella_cli.progress import Advance


def importance_of(loss: float, information: float) -> float:
    """How much a task counts, in (0, 1].

    Args:
        loss: L, of its answers, nats an answer.
        information: S − L, nats an answer; below 0 by chance alone.
    """
    explained = -math.expm1(-2 * max(information, 0.0))
    sure = math.exp(-4 * max(loss, 0.0))
    # Where neither is anything it still counts, by too little to notice.
    return max(explained, sure, 1e-6)


def to_other_questions(
    base: Base, rows: Sequence[Mapping[str, list[int]]]
) -> list[dict[str, list[int]]]:
    """Each row's question with the next row's answer; the last with the first's.

    Args:
        rows: what `Encoder.example` gives, in an order that says nothing.
    """
    paired = []
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        question, answer = row["input_ids"], other["labels"]
        if base.kind == "decoder":
            question = question[: len(question) - len(row["labels"])] + answer
        paired.append({"input_ids": question, "labels": answer})
    return paired


def total_loss(
    base: Base,
    rows: Sequence[Mapping[str, list[int]]],
    batch_size: int,
    advance: Advance = lambda done, words: None,
) -> float:
    """Cross-entropy of the model as it stands, nats, summed over all answer tokens.

    Args:
        advance: told of every batch.
    """
    collate, total = base.collator(), 0.0
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    with torch.inference_mode():
        for start in range(0, len(ordered), batch_size):
            logits, labels = base.answer_logits(collate(ordered[start : start + batch_size]))
            total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            advance(1, "")
    return total
