"""How much of a task was learned, by which its curvature counts with `--importance auto`.

A task that was hardly learned answers by chance. The Fisher matrix is largest at such toss-ups, so
by it alone this task is protected most, though it has least to lose, and later tasks are learned
less (docs/decisions/0009). What there is to lose is told by exchanging questions: the same
answers, each given to another row's question, cost S nats an answer instead of L. With the contrast
S − L the task counts by

    max(1 − exp(−2 (S − L)), exp(−4 L))

which is near 0 for answers by chance, 0.18 at a contrast of 0.1 nats and 0.98 at 2. What no model
could foresee in an answer is in S and L alike and takes nothing away. Answers that are the same
whatever the question have no contrast, but where they are sure, L near 0, they are no toss-ups
either: the second term, 0.06 at a toss-up between two.

Source: the contrast of a calibrated model estimates the mutual and the lautum information of
questions and answers together (Palomar & Verdú 2008); the two exponents are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ella_cli.model.base import Base
from ella_cli.progress import Advance


def importance_of(loss: float, contrast: float | None) -> float:
    """How much a task counts, in (0, 1].

    Args:
        loss: L, of its answers, nats an answer.
        contrast: S − L, nats an answer, below 0 by chance alone; None where there was no other
            question to ask, and then it counts in full.
    """
    if contrast is None:
        return 1.0
    by_contrast = -math.expm1(-2 * max(contrast, 0.0))
    sure = math.exp(-4 * max(loss, 0.0))
    # Where neither is anything it still counts, by too little to notice.
    return max(by_contrast, sure, 1e-6)


def to_other_questions(
    base: Base, rows: Sequence[Mapping[str, list[int]]]
) -> list[dict[str, list[int]]]:
    """Each row's question with the next row's answer; the last with the first's.

    Args:
        rows: what `Encoder.example` gives, in an order that says nothing. It kept room for the
            longest answer, so that any of them fits.
    """
    paired = []
    for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
        ids, answer = row["input_ids"], other["labels"]
        if base.kind == "decoder":
            ids = ids[: len(ids) - len(row["labels"])] + answer
        paired.append({"input_ids": ids, "labels": answer})
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
