"""results.json: tasks trained alone bring their rows, so that plasticity has an interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ella_cli import files
from ella_cli.errors import SettingsError
from ella_cli.evaluate.grid import Cell
from ella_cli.evaluate.results import results_document, single_rows
from ella_cli.report.metrics import bootstrap
from ella_cli.report.results import read_run
from ella_cli.tasks import Task, load_task


@pytest.fixture
def tasks() -> list[Task]:
    return [load_task(name, limit=4) for name in ("demo-topic", "demo-mood")]


def _cell(*rows: float) -> Cell:
    return Cell(sum(rows) / len(rows), rows, ("",) * len(rows))


def _rows() -> list[list[Cell | None]]:
    return [[_cell(1, 1, 0, 1), _cell(0, 0, 0, 1)], [_cell(1, 0, 0, 1), _cell(1, 1, 1, 0)]]


def test_rows_of_single_travel_with_the_results(tasks: list[Task], tmp_path: Path) -> None:
    alone = results_document(
        tasks,
        [[_cell(1, 1, 1, 1), None], [None, _cell(1, 1, 0, 0)]],
        None,
        None,
        {"method": "single"},
    )
    (tmp_path / "single").mkdir()
    files.write_json(tmp_path / "single" / "results.json", alone)
    rows = single_rows(tmp_path / "single", tasks, {})
    assert rows == {"demo-topic": [1, 1, 1, 1], "demo-mood": [1, 1, 0, 0]}

    document = results_document(tasks, _rows(), None, rows, {"method": "ella", "lambda": 1.0})
    assert document["single"] == [1.0, 0.5]
    assert document["fwt_plasticity"] == pytest.approx(0.25)
    assert document["row_scores"]["single"] == rows
    (tmp_path / "run").mkdir()
    files.write_json(tmp_path / "run" / "results.json", document)
    interval = bootstrap(read_run(tmp_path / "run"))["fwt_plasticity"]
    assert interval is not None
    assert interval.low <= 0.25 <= interval.high
    assert interval.low < interval.high


def test_other_test_rows_are_refused(tasks: list[Task], tmp_path: Path) -> None:
    alone = [[_cell(1, 1, 1, 1), None], [None, _cell(1, 1, 0)]]
    document = results_document(tasks, alone, None, None, {"method": "single"})
    files.write_json(tmp_path / "results.json", document)
    with pytest.raises(SettingsError, match="demo-mood was scored alone on 3 test rows, here on 4"):
        single_rows(tmp_path, tasks, {})


def test_as_many_rows_of_another_question_are_refused(tasks: list[Task], tmp_path: Path) -> None:
    document = results_document(tasks, _rows(), None, None, {"method": "single"})
    files.write_json(tmp_path / "results.json", document)
    other = replace(tasks[0], spec=replace(tasks[0].spec, instruction="Which one?"))
    rows = replace(tasks[1], test=tasks[1].test[::-1])
    for asked in ([other, tasks[1]], [tasks[0], rows]):
        with pytest.raises(SettingsError, match="was scored alone on other test rows, or asked"):
            single_rows(tmp_path, asked, {})
    # What was learned from is no matter of the score.
    assert single_rows(tmp_path, [replace(tasks[0], train=(), fingerprint="")], {})
    # An older ella did not say.
    del document["test_digests"]
    files.write_json(tmp_path / "results.json", document)
    assert single_rows(tmp_path, [other], {})


def test_only_a_run_of_single_is_taken(tasks: list[Task], tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "results.json", results_document(tasks, _rows(), None, None, {"method": "ella"})
    )
    with pytest.raises(SettingsError, match="not of single"):
        single_rows(tmp_path, tasks, {})


@pytest.mark.parametrize(
    ("here", "says"),
    [
        ({"decode": "rank"}, "has decode generate, here it is rank"),
        ({"header": True}, "has header False, here it is True"),
        ({"validation": 4}, "has validation 0, here it is 4"),
        ({"base_model": {"model": "m", "fingerprint": "b" * 64}}, "has base model a{12}, here it"),
    ],
)
def test_what_was_scored_otherwise_is_refused(
    here: dict[str, object], says: str, tasks: list[Task], tmp_path: Path
) -> None:
    facts = {"decode": "generate", "header": False, "validation": 0}
    base = {"base_model": {"model": "elsewhere/m", "fingerprint": "a" * 64}}
    document = results_document(tasks, _rows(), None, None, {"method": "single", **facts, **base})
    files.write_json(tmp_path / "results.json", document)
    assert single_rows(tmp_path, tasks, facts)
    assert single_rows(
        tmp_path, tasks, {**facts, "base_model": {"model": "m", "fingerprint": None}}
    )
    with pytest.raises(SettingsError, match=says):
        single_rows(tmp_path, tasks, facts | here)
