from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from ella_cli.report.metrics import METRICS, bootstrap, metric_values, spread
from ella_cli.report.results import read_run
from tests.report.conftest import BASE, MATRIX, ORDER, ROWS, SINGLE, rows_of

WriteRun = Callable[..., Path]


def test_figures_follow_their_definitions(write_run: WriteRun) -> None:
    a = numpy.array(MATRIX)
    expected = {
        "oa": a[3].mean(),
        "bwt": numpy.mean([a[3, i] - a[i, i] for i in range(3)]),
        "forgetting": numpy.mean([a[:3, i].max() - a[3, i] for i in range(3)]),
        "learned": numpy.diag(a).mean(),
        "fwt_zero_shot": numpy.mean([a[i - 1, i] - BASE[i] for i in (1, 2, 3)]),
        "fwt_plasticity": numpy.mean([a[i, i] - SINGLE[i] for i in (1, 2, 3)]),
    }
    assert metric_values(read_run(write_run())) == pytest.approx(expected)


def test_the_interval_of_oa_is_that_of_resampled_rows(write_run: WriteRun) -> None:
    found = bootstrap(read_run(write_run()), resamples=4000)["oa"]
    assert found is not None
    # Another route: rows drawn by index, task by task.
    rng = numpy.random.default_rng(1)
    rows = [numpy.array(rows_of(score, i)) for i, score in enumerate(MATRIX[3])]
    drawn = [
        numpy.mean([r[rng.integers(ROWS, size=ROWS)].mean() for r in rows]) for _ in range(4000)
    ]
    low, high = numpy.quantile(drawn, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.015)
    assert found.high == pytest.approx(high, abs=0.015)


def test_stages_that_answer_alike_have_a_bwt_without_doubt(write_run: WriteRun) -> None:
    # The same draw serves every stage, so equal answers differ by 0 in every draw.
    flat = [[0.5] * 4] * 4
    interval = bootstrap(read_run(write_run(matrix=flat)), resamples=50)["bwt"]
    assert interval is not None
    assert (interval.low, interval.high) == (0.0, 0.0)


def test_equal_runs_give_equal_intervals(write_run: WriteRun) -> None:
    folder = write_run()
    one, other = (bootstrap(read_run(folder), resamples=50) for _ in range(2))
    assert one == other
    assert one is not other


def test_a_figure_without_its_rows_has_no_interval(write_run: WriteRun) -> None:
    rows = {task: {t: rows_of(s, i) for i, (t, s) in enumerate(zip(ORDER, row, strict=True))}
            for task, row in zip(ORDER, MATRIX, strict=True)}  # fmt: skip
    found = bootstrap(read_run(write_run(row_scores=rows)), resamples=20)
    assert found["oa"] is not None
    assert found["fwt_zero_shot"] is None
    assert found["fwt_plasticity"] is None
    none = bootstrap(read_run(write_run("bare", row_scores={})), resamples=20)
    assert set(none.values()) == {None}


def test_rows_filed_under_the_stage_folders_name_are_found(write_run: WriteRun) -> None:
    rows = {
        f"{j:02d}-{task}": {
            t: rows_of(s, i) for i, (t, s) in enumerate(zip(ORDER, row, strict=True))
        }
        for j, (task, row) in enumerate(zip(ORDER, MATRIX, strict=True), start=1)
    }  # fmt: skip
    assert bootstrap(read_run(write_run(row_scores=rows)), resamples=20)["oa"] is not None


def test_cells_that_were_not_run_leave_their_figures_unknown(write_run: WriteRun) -> None:
    sparse = [[row[i] if i == j else None for i in range(4)] for j, row in enumerate(MATRIX)]
    run = read_run(write_run(method="single", matrix=sparse, base=None, single=None))
    values = metric_values(run)
    assert values["learned"] == pytest.approx(numpy.diag(numpy.array(MATRIX)).mean())
    assert {values[m.key] for m in METRICS if m.key != "learned"} == {None}
    intervals = bootstrap(run, resamples=20)
    assert intervals["learned"] is not None
    assert intervals["oa"] is None


def test_spread_is_the_mean_and_the_sample_deviation() -> None:
    values = [0.4, 0.5, 0.9]
    found = spread(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.deviation == pytest.approx(statistics.stdev(values))
    assert spread([0.4]).deviation is None
