"""SARI, the score of text simplification: what was rightly added, kept and deleted.

No library kept well has it, so it is written out here from the paper: Xu, Napoles, Pavlick, Chen,
Callison-Burch, "Optimizing Statistical Machine Translation for Text Simplification", TACL 4
(2016), section 4.1, with one reference.

For n-grams g of orders n = 1..4, with counts I (source), O (output), R (reference), and sums
running over g:

    add      p = Σ [g in O, not in I, in R] / Σ [g in O, not in I]
             r = the same over Σ [g in R, not in I]
    keep     p = Σ min(I, O, R) / Σ min(I, O)        r = the same over Σ min(I, R)
    delete   p = Σ min(max(I - O, 0), max(I - R, 0)) / Σ max(I - O, 0)

F = 2 p r / (p + r) of add and of keep, and p of delete (deleting too much hurts most, so recall
does not count), each averaged over the orders; SARI is the mean of the three.

Where there was nothing to add, keep or delete (0 / 0), the value is 1: an output equal to the
reference scores 1. The published script instead gives 0 there. It also weights each distinct
kept or deleted n-gram alike, whatever its count, so its scores differ a little from these.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

_ORDERS = range(1, 5)


def sari(source: str, output: str, reference: str) -> float:
    """SARI of one output, in [0, 1] (the paper prints it times 100)."""
    tokens = _tokens(source), _tokens(output), _tokens(reference)
    return sum(_one_order(*(_grams(text, n) for text in tokens)) for n in _ORDERS) / len(_ORDERS)


def _one_order(source: Counter[str], output: Counter[str], reference: Counter[str]) -> float:
    added, to_add = set(output) - set(source), set(reference) - set(source)
    rightly_added = len(added & to_add)
    add = _f1(_ratio(rightly_added, len(added)), _ratio(rightly_added, len(to_add)))

    kept, to_keep = source & output, source & reference
    rightly_kept = (kept & to_keep).total()
    keep = _f1(_ratio(rightly_kept, kept.total()), _ratio(rightly_kept, to_keep.total()))

    deleted, to_delete = source - output, source - reference
    delete = _ratio((deleted & to_delete).total(), deleted.total())
    return (add + keep + delete) / 3


def _grams(tokens: list[str], n: int) -> Counter[str]:
    return Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _tokens(text: str) -> list[str]:
    return _tokenizer()(text.casefold()).split()


@functools.cache
def _tokenizer() -> Callable[[str], str]:
    """The WMT's 13a, which the published figures use too."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]
    return tokenizer


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
