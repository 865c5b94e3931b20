"""SARI, against values worked out by hand and a second, plain computation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.tasks.sari import sari

sentences = st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("source", "output", "reference", "expected"),
    [
        # Orders 1..4, by hand: 5/9, 1/3, 1, 1 (see the formula at the top of sari.py).
        # n=1: add p 0/0, r 0/1 -> 0; keep p 1/2, r 1/1 -> 2/3; delete 1/1.
        # n=2: add p 0/0, r 0/1 -> 0; keep p 0/1, r 0/0 -> 0; delete 1/1.
        # n=3: nothing to add or keep -> 1, 1; delete 1/1.   n=4: nothing at all -> 1.
        ("a b c", "a b", "a d", 13 / 18),
        # n=1: add 0; keep p 1, r 1/2 -> 2/3; delete p 0/1 -> 2/9. n=2: add 1, keep p 0/0, r 0/1
        # -> 0, delete p 0/1 -> 1/3. n=3, 4: 1.
        ("a b", "a", "a b", (2 / 9 + 1 / 3 + 1 + 1) / 4 + 1 / 12),
        ("a b c d", "a b c d", "a b c d", 1.0),
    ],
)
def test_values_worked_out_by_hand(
    source: str, output: str, reference: str, expected: float
) -> None:
    assert sari(source, output, reference) == pytest.approx(expected, abs=1e-12)


def _plain(source: str, output: str, reference: str) -> float:
    """The paper's sums written out gram by gram, without multisets."""
    total = 0.0
    for n in range(1, 5):
        lists = [
            [tuple(t[i : i + n]) for i in range(len(t) - n + 1)]
            for t in (source.split(), output.split(), reference.split())
        ]
        grams = sorted({gram for grams in lists for gram in grams})
        counts = [[grams_of.count(gram) for grams_of in lists] for gram in grams]
        add_out = sum(o > 0 and i == 0 for i, o, r in counts)
        add_ref = sum(r > 0 and i == 0 for i, o, r in counts)
        add_both = sum(o > 0 and i == 0 and r > 0 for i, o, r in counts)
        keep_out = sum(min(i, o) for i, o, r in counts)
        keep_ref = sum(min(i, r) for i, o, r in counts)
        keep_both = sum(min(i, o, r) for i, o, r in counts)
        del_out = sum(max(i - o, 0) for i, o, r in counts)
        del_both = sum(min(max(i - o, 0), max(i - r, 0)) for i, o, r in counts)

        def over(part: float, whole: float) -> float:
            return part / whole if whole else 1.0

        def f1(p: float, r: float) -> float:
            return 2 * p * r / (p + r) if p + r else 0.0

        total += f1(over(add_both, add_out), over(add_both, add_ref))
        total += f1(over(keep_both, keep_out), over(keep_both, keep_ref))
        total += over(del_both, del_out)
    return total / 12


@given(sentences, sentences, sentences)
def test_it_is_the_papers_sum(source: str, output: str, reference: str) -> None:
    assert sari(source, output, reference) == pytest.approx(
        _plain(source, output, reference), abs=1e-12
    )


@given(sentences, sentences)
def test_the_reference_itself_scores_1(source: str, reference: str) -> None:
    assert sari(source, reference, reference) == pytest.approx(1.0)


def test_copying_the_source_scores_less_than_simplifying_it() -> None:
    source = "Der Beschluss wurde von der Mehrheit der Anwesenden angenommen."
    reference = "Die Mehrheit sagte Ja."
    assert sari(source, source, reference) < sari(source, "Die Mehrheit war dafür.", reference)
