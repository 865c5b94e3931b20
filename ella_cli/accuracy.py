"""How well a sequence of tasks was learned and kept: the accuracy matrix and what is read off it.

Letters: K tasks; a[j][i] is the score on task i after training task j, both counted from 1 in the
formulas and from 0 in the code; b[i] the untouched base model's score; s[i] the score of task i
trained alone from the base. All are fractions in [0, 1], and all means are over tasks, not rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ella_cli.errors import StorageError

Score = float | None
"""A score in [0, 1], or None where it was not run."""


@dataclass(frozen=True)
class AccuracyMatrix:
    """Scores of K tasks after each of K stages.

    Attributes:
        order: the tasks' names, in the order of training.
        matrix: K rows of K scores; row j is after task j, column i is task i.
        base: the untouched model's score on each task, or None if it was not run.
        single: each task's score when trained alone from the base, or None.
        only_end: what came of all tasks was scored, and no stage: of one task, too, it is not
            known how it was learned.

    Every figure is None where a score it needs was not run, or K is too small for it.
    """

    order: tuple[str, ...]
    matrix: tuple[tuple[Score, ...], ...]
    base: tuple[Score, ...] | None = None
    single: tuple[Score, ...] | None = None
    only_end: bool = False

    def __post_init__(self) -> None:
        count = len(self.order)
        assert count > 0, "no tasks"
        assert len(self.matrix) == count, f"{len(self.matrix)} rows for {count} tasks"
        for scores in (*self.matrix, self.base, self.single):
            if scores is None:
                continue
            assert len(scores) == count, f"{len(scores)} scores for {count} tasks"
            assert all(one is None or 0.0 <= one <= 1.0 for one in scores), (
                f"not in [0, 1]: {scores}"
            )

    @property
    def oa(self) -> Score:
        """Overall accuracy: mean over i of a[K][i].

        Source: Chaudhry et al. 2018 (arXiv 1801.10112), there A_K; ELLA's OA.
        """
        return _mean(self.matrix[-1])

    @property
    def bwt(self) -> Score:
        """Backward transfer: mean over i < K of a[K][i] - a[i][i]; below 0 is forgetting.

        Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), their BWT.
        """
        return _mean([_minus(self.matrix[-1][i], self.matrix[i][i]) for i in self._earlier])

    @property
    def forgetting(self) -> Score:
        """Mean over i < K of (max over j < K of a[j][i]) - a[K][i].

        The maximum is over the stages that were run; at least one from i on must have been.

        Source: Chaudhry et al. 2018 (arXiv 1801.10112), their F_K, with the maximum over all
        earlier stages.
        """
        return _mean([_minus(self._best_before_last(i), self.matrix[-1][i]) for i in self._earlier])

    @property
    def unseen_by_forgetting(self) -> frozenset[tuple[int, int]]:
        """Cells (j, i) of its maximum that were not run; with any, forgetting is a lower bound."""
        rows = enumerate(self.matrix[:-1])
        return frozenset((j, i) for j, row in rows for i in self._earlier if row[i] is None)

    @property
    def learned(self) -> Score:
        """Mean over i of a[i][i]: each task right after it was learned.

        Source: Riemer et al. 2018 (arXiv 1810.11910), "learning accuracy".
        """
        if self.only_end:
            return None
        return _mean([self.matrix[i][i] for i in range(len(self.order))])

    @property
    def fwt_zero_shot(self) -> Score:
        """Zero-shot forward transfer: mean over i > 1 of a[i-1][i] - b[i].

        What earlier tasks do for a task not yet trained.

        Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), their FWT, with the base model in
        the place of random initialisation.
        """
        if self.base is None:
            return None
        later = range(1, len(self.order))
        return _mean([_minus(self.matrix[i - 1][i], self.base[i]) for i in later])

    @property
    def fwt_plasticity(self) -> Score:
        """Plasticity forward transfer: mean over i > 1 of a[i][i] - s[i].

        What the past does to learning: below 0, the task is learned less well than alone.

        Source: the FWT of O-LoRA's followers, e.g. N-LoRA (arXiv 2410.10179) and SAPT
        (arXiv 2401.08295).
        """
        if self.single is None:
            return None
        later = range(1, len(self.order))
        return _mean([_minus(self.matrix[i][i], self.single[i]) for i in later])

    @property
    def figures(self) -> dict[str, Score]:
        """All of the above by name."""
        return {
            "oa": self.oa,
            "bwt": self.bwt,
            "forgetting": self.forgetting,
            "learned": self.learned,
            "fwt_zero_shot": self.fwt_zero_shot,
            "fwt_plasticity": self.fwt_plasticity,
        }

    def to_json(self) -> dict[str, Any]:
        """`order`, `matrix`, `base`, `single` and the figures; None is null."""
        return {
            "order": list(self.order),
            "matrix": [list(row) for row in self.matrix],
            "base": None if self.base is None else list(self.base),
            "single": None if self.single is None else list(self.single),
            **self.figures,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AccuracyMatrix:
        """The matrix that `to_json` wrote; figures are computed anew.

        Of other keys `method` alone counts: scores of a past are those of its end.

        Raises:
            StorageError: a key is missing, or the sizes or values do not make up a matrix.
        """
        try:
            order = tuple(document["order"])
            if not all(isinstance(task, str) for task in order) or len({*order}) < len(order):
                raise ValueError(f"{str(order)[:100]} are no names of tasks, each once")
            matrix = tuple(_scores(row, len(order)) for row in document["matrix"])
            if not order or len(matrix) != len(order):
                raise ValueError(f"{len(matrix)} rows for {len(order)} tasks")
            base, single = document.get("base"), document.get("single")
            return cls(
                order,
                matrix,
                None if base is None else _scores(base, len(order)),
                None if single is None else _scores(single, len(order)),
                only_end=document.get("method") == "past",
            )
        # A number of hundreds of digits is too large for a float.
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise StorageError(
                f"not the results of a run: {what}",
                hint="give the results.json that `ella run` or `ella evaluate` wrote",
            ) from error

    @property
    def _earlier(self) -> range:
        return range(len(self.order) - 1)

    def _best_before_last(self, task: int) -> Score:
        if all(row[task] is None for row in self.matrix[task:-1]):
            return None
        return max(score for row in self.matrix[:-1] if (score := row[task]) is not None)


def _mean(scores: Sequence[Score]) -> Score:
    known = [score for score in scores if score is not None]
    return fmean(known) if known and len(known) == len(scores) else None


def _minus(left: Score, right: Score) -> Score:
    return None if left is None or right is None else left - right


def _scores(values: Sequence[Any], count: int) -> tuple[Score, ...]:
    scores = tuple(None if value is None else float(value) for value in values)
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} tasks")
    outside = [score for score in scores if score is not None and not 0.0 <= score <= 1.0]
    if outside:
        raise ValueError(f"{outside[0]} is not a fraction in [0, 1]")
    return scores
