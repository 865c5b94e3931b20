from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.past import accumulate
from tests.cli.in_process import ella
from tests.inspect.conftest import write_run  # noqa: F401 - a fixture

WriteRun = Callable[..., Path]
MATRIX = ((0.8, 0.1, 0.1), (0.7, 0.6, 0.1), (0.5, 0.55, 0.7))


@pytest.fixture
def run(write_run: WriteRun, tmp_path: Path) -> Path:  # noqa: F811
    folder = write_run("run", MATRIX)
    accumulate(sorted((folder / "stages").iterdir())[:2], tmp_path / "two.safetensors")
    return folder


COMMANDS = {
    "energy": ["{past}"],
    "spectrum": ["{past}"],
    "overlap": ["{last}", "--past", "{two}"],
    "bound": ["{two}", "{last}", "--lambda", "1", "--lambda", "100"],
    "forgetting": ["{run}"],
    "adapter": ["{last}"],
    "run": ["{run}"],
    "past": ["{past}"],
    "diff": ["{two}", "{past}"],
}


def filled(words: list[str], run: Path) -> list[str]:
    return [
        word.format(
            run=run,
            past=run / "wpast.safetensors",
            two=run.parent / "two.safetensors",
            last=run / "stages" / "03-task2",
        )
        for word in words
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_tells_and_gives_strict_json_and_a_page(
    command: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["inspect", command, *filled(COMMANDS[command], run)]
    assert ella(monkeypatch, *words) == 0
    assert capsys.readouterr().out
    page = tmp_path / "page.html"
    assert ella(monkeypatch, *words, "--json", "--html", str(page)) == 0
    assert json.loads(capsys.readouterr().out)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["energy", "spectrum", "overlap"])
def test_what_has_maps_or_curves_can_be_drawn(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.svg"
    words = filled(COMMANDS[command], run)
    assert ella(monkeypatch, "inspect", command, *words, "--plot", str(picture)) == 0
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_an_adapter_that_collides_is_named_with_the_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(run / "stages" / "01-task0")
    past = str(run.parent / "two.safetensors")
    assert ella(monkeypatch, "inspect", "overlap", first, "--past", past) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "already holds this adapter, as task0" in said
    assert "It collides with task0" in said
    assert "hardest in model.layers." in said


def test_without_a_past_a_stage_is_set_against_the_stages_before_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = str(run / "stages" / "03-task2")
    found = []
    for words in ([], ["--past", str(run.parent / "two.safetensors")]):
        assert ella(monkeypatch, "inspect", "overlap", last, *words, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["total"] == pytest.approx(found[1]["total"])
    assert [task["name"] for task in found[0]["tasks"]] == ["task0", "task1"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["overlap", "{run}/stages/01-task0"], "was not trained on a past"),
        (["overlap", "{run}"], "no stage of an"),
        (["energy", "nowhere.safetensors"], "there is no W_past file"),
        (["spectrum", "{last}/adapter_model.safetensors"], "is no W_past file"),
        (["overlap", "{run}", "--past", "{past}"], "adapter_config.json"),
        (["bound", "{two}", "{last}", "--lambda", "0"], "λ above 0"),
        (["diff", "{past}", "{last}"], "is a folder and"),
        (["run", "{last}"], "no run.json"),
        (["energy", "{past}", "--plot", "picture.gif"], "no .png or .svg"),
    ],
)
def test_bad_input_gets_two_lines(
    words: list[str],
    says: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert ella(monkeypatch, "inspect", *filled(words, run)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["error", "next"]
    assert sorted(tmp_path.iterdir()) == before


def test_a_truncated_past_is_refused_before_a_number_is_shown(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    past = run / "wpast.safetensors"
    past.write_bytes(past.read_bytes()[:-100])
    assert ella(monkeypatch, "inspect", "energy", str(past)) == 2
    assert capsys.readouterr().out == ""
