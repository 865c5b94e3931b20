"""The accuracy matrix's figures: laws, a published matrix, and what was not run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.accuracy import AccuracyMatrix
from ella_cli.errors import StorageError

scores = st.floats(0, 1)
FIGURES = ("oa", "bwt", "forgetting", "learned", "fwt_zero_shot", "fwt_plasticity")


def _matrix(
    rows: list[list[float | None]],
    base: list[float | None] | None = None,
    single: list[float | None] | None = None,
) -> AccuracyMatrix:
    return AccuracyMatrix(
        tuple(f"task-{i}" for i in range(len(rows))),
        tuple(tuple(row) for row in rows),
        None if base is None else tuple(base),
        None if single is None else tuple(single),
    )


@st.composite
def full_matrices(draw: st.DrawFn, least: int = 2) -> AccuracyMatrix:
    size = draw(st.integers(least, 5))
    row = st.lists(scores, min_size=size, max_size=size)
    return _matrix(draw(st.lists(row, min_size=size, max_size=size)), draw(row), draw(row))


def test_o_loras_own_log_of_order_1_gives_its_published_figures() -> None:
    percent = [
        [98.71, None, None, None],
        [98.55, 57.76, None, None],
        [97.41, 57.41, 71.91, None],
        [97.74, 56.07, 71.04, 88.62],
    ]
    found = _matrix([[None if p is None else p / 100 for p in row] for row in percent])
    assert found.oa == pytest.approx(0.7837, abs=5e-5)
    assert found.bwt == pytest.approx(-0.0118, abs=5e-5)
    assert found.learned == pytest.approx(0.7925, abs=5e-5)
    # By hand: (98.71 - 97.74 + 57.76 - 56.07 + 71.91 - 71.04) / 3.
    assert found.forgetting == pytest.approx((0.97 + 1.69 + 0.87) / 300, abs=1e-12)
    assert found.fwt_zero_shot is None
    assert found.fwt_plasticity is None


def test_every_figure_by_hand() -> None:
    found = _matrix(
        [[0.8, 0.2, 0.1], [0.9, 0.6, 0.3], [0.5, 0.4, 0.7]], [0.3, 0.1, 0.2], [0.8, 0.7, 0.65]
    )
    assert found.oa == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    assert found.bwt == pytest.approx(((0.5 - 0.8) + (0.4 - 0.6)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.6 - 0.4)) / 2)
    assert found.learned == pytest.approx((0.8 + 0.6 + 0.7) / 3)
    assert found.fwt_zero_shot == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert found.fwt_plasticity == pytest.approx(((0.6 - 0.7) + (0.7 - 0.65)) / 2)


@given(scores, st.integers(2, 6))
def test_a_constant_matrix_forgets_and_transfers_nothing(score: float, size: int) -> None:
    constant: list[float | None] = [score] * size
    found = _matrix([constant] * size, constant, constant)
    assert found.bwt == found.forgetting == found.fwt_zero_shot == found.fwt_plasticity == 0.0
    assert found.oa == pytest.approx(score)
    assert found.learned == pytest.approx(score)


@given(full_matrices())
def test_the_figures_agree_with_each_other(found: AccuracyMatrix) -> None:
    count = len(found.order)
    assert found.oa is not None
    assert found.bwt is not None
    assert found.learned is not None
    assert found.forgetting is not None
    # What was learned, less what was lost of the earlier tasks, is what is there at the end.
    assert found.oa == pytest.approx(found.learned + (count - 1) / count * found.bwt)
    # The best earlier score is no worse than the one right after learning.
    assert found.forgetting >= -found.bwt - 1e-12
    assert -1 <= found.bwt <= 1


@given(full_matrices())
def test_better_final_scores_never_lower_a_figure_of_keeping(found: AccuracyMatrix) -> None:
    best = AccuracyMatrix(found.order, (*found.matrix[:-1], (1.0,) * len(found.order)))
    assert found.oa is not None
    assert found.bwt is not None
    assert found.forgetting is not None
    assert best.oa is not None
    assert best.oa >= found.oa
    assert best.bwt is not None
    assert best.bwt >= found.bwt - 1e-12
    assert best.forgetting is not None
    assert best.forgetting <= found.forgetting + 1e-12


@given(full_matrices(least=1))
def test_what_is_written_is_read_back(found: AccuracyMatrix) -> None:
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert AccuracyMatrix.from_json(document) == found
    assert {name: document[name] for name in FIGURES} == found.figures


def test_one_task_has_nothing_to_forget() -> None:
    found = _matrix([[0.5]], [0.1], [0.5])
    assert found.oa == found.learned == 0.5
    assert found.bwt is None
    assert found.forgetting is None
    assert found.fwt_zero_shot is None
    assert found.fwt_plasticity is None


@pytest.mark.parametrize(
    ("row", "column", "lost"),
    [
        (2, 0, {"oa", "bwt", "forgetting"}),
        (2, 2, {"oa", "learned", "fwt_plasticity"}),
        (1, 1, {"bwt", "forgetting", "learned", "fwt_plasticity"}),
        (0, 0, {"bwt", "learned"}),
        (0, 1, {"fwt_zero_shot"}),
        (0, 2, set()),
    ],
)
def test_a_score_that_was_not_run_leaves_out_only_what_needs_it(
    row: int, column: int, lost: set[str]
) -> None:
    rows: list[list[float | None]] = [[0.5] * 3, [0.5] * 3, [0.5] * 3]
    rows[row][column] = None
    figures = _matrix(rows, [0.5] * 3, [0.5] * 3).figures
    assert {name for name, value in figures.items() if value is None} == lost


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "no 'order'"),
        ({"order": ["a"]}, "no 'matrix'"),
        ({"order": ["a", "b"], "matrix": [[0.5, 0.5]]}, "1 rows for 2 tasks"),
        ({"order": ["a"], "matrix": [[0.5, 0.5]]}, "2 scores for 1 tasks"),
        ({"order": ["a"], "matrix": [[50.0]]}, "50.0 is not a fraction"),
        ({"order": ["a"], "matrix": [["x"]]}, "could not convert"),
        ({"order": ["a"], "matrix": [[0.5]], "base": [0.1, 0.2]}, "2 scores for 1 tasks"),
        ({"order": [], "matrix": []}, "0 rows for 0 tasks"),
    ],
)
def test_results_that_are_none_say_why(document: dict[str, Any], words: str) -> None:
    with pytest.raises(StorageError) as caught:
        AccuracyMatrix.from_json(document)
    assert words in caught.value.message
    assert caught.value.hint
