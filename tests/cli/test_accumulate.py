"""`ella accumulate` as a process: what it prints, where, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ella_cli.past import read_past
from tests.conftest import Ella
from tests.past.conftest import MakeAdapter, make_adapter

__all__ = ["make_adapter"]


def test_adapters_come_in_and_go_out_and_the_file_says_so(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    first = make_adapter("first", 0, manifest={"task": "dbpedia", "lambda": 1e4})
    second = make_adapter("second", 1)
    done = ella("accumulate", first, second, "--past", "w.safetensors")
    assert "dbpedia" in done.stdout
    assert "second" in done.stdout
    assert done.stderr.startswith("store: factored")

    document = json.loads(
        ella("accumulate", "--past", "w.safetensors", "--drop", "second", "--json").stdout
    )
    assert document["dropped"] == ["second"]
    assert [(task["name"], task["lambda"]) for task in document["tasks"]] == [("dbpedia", 1e4)]
    assert document["digest"] == read_past(tmp_path / "w.safetensors").digest
    assert document["bytes"] == (tmp_path / "w.safetensors").stat().st_size

    again = ella("accumulate", first, "--past", "w.safetensors", code=2)
    assert again.stdout == ""
    assert again.stderr.count("\n") == 2
    assert "already, as dbpedia" in again.stderr


def test_one_call_replaces_and_compacts(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folders = [make_adapter(f"t{i}", i % 2, alpha=1.0 + i) for i in range(6)]
    ella("accumulate", *folders, "--past", "w", "--store", "factored", "--quiet")
    done = ella(
        "accumulate", "--past", "w", "--replace", "t5", make_adapter("new", 1, alpha=9.0),
        "--compact", "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["dropped"] == ["t5"]
    assert [task["name"] for task in document["tasks"]][-1] == "t5"
    compacted = document["compacted"]
    assert {(m["rank_before"], m["rank_after"]) for m in compacted["modules"]} == {(12, 4)}
    assert compacted["bytes_after"] < compacted["bytes_before"]


def test_compaction_goes_with_any_other_wish(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    one, two = make_adapter("one", 0), make_adapter("two", 1)
    kept = ella("accumulate", one, two, "--past", "w", "--compact", "--json")
    # Two tasks of other directions need all their ranks: no failure, for they are in.
    assert "would not get smaller" in kept.stderr
    assert [task["name"] for task in json.loads(kept.stdout)["tasks"]] == ["one", "two"]
    before = (tmp_path / "w").read_bytes()
    for wish in (["--energy", "rss"], ["--last", "1"], ["--store", "dense"], ["--shrink", "1"]):
        failed = ella("accumulate", "--past", "w", "--compact", *wish, code=2)
        assert "--compact makes one of all tasks' factors" in failed.stderr
    assert (tmp_path / "w").read_bytes() == before
    ella("accumulate", "--past", "w", "--compact", "--energy", "curvature")
    assert read_past(tmp_path / "w").energy == "curvature"
    # Curvature has weights of its own; the sum of the updates is the plain one.
    ella("accumulate", "--past", "w", "--compact", "--last", "1")
    assert read_past(tmp_path / "w").record.energy.last == 1


def test_what_cannot_be_compacted_gets_no_task_more(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    one, two = make_adapter("one", 0), make_adapter("two", 1)
    ella("accumulate", one, "--past", "w", "--last", "1")
    failed = ella("accumulate", two, "--past", "w", "--compact", code=2)
    assert "needs its tasks apart" in failed.stderr
    assert [task.name for task in read_past(tmp_path / "w").tasks] == ["one"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--past", "w"], "nothing to do"),
        (["nowhere", "--past", "w"], "nowhere does not exist"),
        (["--past", "w", "--drop", "x"], "no task x"),
    ],
)
def test_what_cannot_be_done_leaves_no_file(
    ella: Ella, arguments: list[str], said: str, tmp_path: Path
) -> None:
    failed = ella("accumulate", *arguments, code=2)
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".w.lock")] == []


def test_neither_peft_nor_transformers_is_loaded(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from ella_cli.past import accumulate\n"
        "accumulate([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "print(sorted({'peft', 'transformers', 'triton', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, make_adapter("a", 0), tmp_path / "w"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_what_comes_in_with_compaction_stays_factors(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    several = [make_adapter(f"a{i}", i) for i in range(12)]
    plain = json.loads(ella("accumulate", *several, "--past", "d", "--json").stdout)
    assert plain["store"] == "dense"
    for wrong, said in (
        (("--tolerance", 2), "--tolerance is 2"),
        (("--decay", 2), "decay is not in (0, 1]"),
        (("--last", -1), "last is not a positive number"),
    ):
        failed = ella("accumulate", *several, "--past", "w", "--compact", *wrong, code=2)
        assert said in failed.stderr
        assert not (tmp_path / "w").exists()
    done = ella("accumulate", *several, "--past", "w", "--compact", "--json")
    assert json.loads(done.stdout)["store"] == "factored"
