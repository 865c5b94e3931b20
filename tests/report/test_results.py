from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.errors import StorageError
from ella_cli.report.results import read_run
from ella_cli.report.tables import accuracy_heat_map
from tests.report.conftest import MATRIX, ORDER

WriteRun = Callable[..., Path]


def test_a_run_is_read_with_its_stages_in_order(write_run: WriteRun) -> None:
    run = read_run(write_run())
    assert run.accuracy.matrix == MATRIX
    assert tuple(stage.task for stage in run.stages) == ORDER
    assert run.stages[2].past_tasks == ORDER[:2]
    assert run.stages[0].curves.step[:3] == (1.0, 2.0, 3.0)
    assert run.label == "ella λ=10000"


@pytest.mark.parametrize(
    ("found", "label"),
    [
        # Found anew for each task, and what curvature takes for all of them.
        ({"lambdas": [0.0, 9.7, 3.8], "rho": 3.0}, "ella λ=auto"),
        ({"lambdas": [0.0, 9.7, 3.8], "rho": 5.0}, "ella λ=auto ρ=5"),
        ({"lambdas": [0.0, 10.0, 10.0], "energy": "curvature"}, "ella curvature λ=10 (auto)"),
        ({"lambdas": [0.0, 7.0], "energy": "abs", "last": 1, "decay": 0.5},
         "ella abs last 1 decay 0.5 λ=7 (auto)"),
    ],
)  # fmt: skip
def test_the_label_tells_what_auto_found(
    write_run: WriteRun, found: dict[str, object], label: str
) -> None:
    assert read_run(write_run(**{"lambda": "auto", **found})).label == label


def test_a_stage_that_is_not_whole_is_none(write_run: WriteRun) -> None:
    run = write_run()
    whole = read_run(run).stages
    shutil.copytree(run / "stages/01-dbpedia", run / "stages/.02-amazon.abcd1234.tmp")
    assert read_run(run).stages == whole


def test_the_hundredth_stage_is_not_the_eleventh(write_run: WriteRun) -> None:
    folder = write_run()
    stages = folder / "stages"
    path = stages / "01-dbpedia"
    manifest = json.loads((path / "ella.json").read_text())
    (path / "ella.json").write_text(json.dumps(manifest | {"order_index": 99}))
    path.rename(stages / "100-dbpedia")
    assert [stage.task for stage in read_run(folder).stages] == [*ORDER[1:], "dbpedia"]


def test_the_results_file_may_be_named_instead_of_its_folder(write_run: WriteRun) -> None:
    folder = write_run()
    assert read_run(folder / "results.json").path == folder


def test_without_run_json_and_manifests_the_scores_are_still_read(write_run: WriteRun) -> None:
    folder = write_run()
    (folder / "run.json").unlink()
    for manifest in folder.glob("stages/*/ella.json"):
        manifest.unlink()
    run = read_run(folder)
    assert run.stages == ()
    assert dict(run.settings) == {}


def test_a_curve_that_was_not_logged_is_all_gaps(write_run: WriteRun) -> None:
    folder = write_run()
    path = folder / "stages" / "01-dbpedia" / "ella.json"
    manifest = json.loads(path.read_text())
    manifest["curves"] = {"step": [1, 2], "ce": [3.0]}
    path.write_text(json.dumps(manifest))
    curves = read_run(folder).stages[0].curves
    assert curves.ce == (3.0, None)
    assert curves.penalty == (None, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not a run's results"),
        ('{"matrix": []}', "order"),
        ('{"order": ["a"], "matrix": [[2.0]]}', "2.0"),
        ('{"order": ["a"], "matrix": [[0.1, 0.2]]}', "2 scores for 1 tasks"),
        ('{"order": ["a"], "matrix": [[0.1]], "row_scores": {"01-a": 3}}', "row_scores"),
        ('{"order": ["a"], "matrix": [[0.1]], "row_scores": {"a": {"a": [NaN]}}}', "row_scores"),
        ('{"order": ["a"], "matrix": [[0.1]], "row_scores": {"a": {"a": [5]}}}', "from 0 to 1"),
        ('{"order": [1], "matrix": [[0.1]]}', "no names of tasks"),
        ('{"order": ["a", "a"], "matrix": [[0.1, 0], [0, 0]]}', "no names of tasks"),
        ('{"order": ["a"], "matrix": [[0.1]], "test_rows": {"a": "x"}}', "test_rows.a"),
        ('{"order": ["a"], "matrix": [[0.1]], "last": "x"}', "last is 'x'"),
    ],
)
def test_a_damaged_results_file_is_refused_in_words(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(StorageError, match=says):
        read_run(tmp_path)


def test_a_folder_without_results_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path)
    assert "ella run" in caught.value.hint


def test_numbers_of_test_rows_are_named_from_least_to_most(write_run: WriteRun) -> None:
    counts = dict(zip(ORDER, (16, 12, 16, 14), strict=True))
    note = accuracy_heat_map(read_run(write_run(test_rows=counts))).note
    assert note.endswith(", 12–16 test rows a task")


def test_a_number_that_no_float_holds_is_not_known(write_run: WriteRun) -> None:
    file = write_run() / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lambda": 10**400}))
    assert read_run(file.parent).lam is None
