"""A run: what it refuses before anything is trained, and what makes it another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ella_cli.config import DataFields, EvaluateSettings, RunSettings
from ella_cli.errors import (
    SettingsError,
    StorageError,
    TaskError,
)
from ella_cli.inspect.run_stages import past_before
from ella_cli.past import accumulate, read_past
from ella_cli.sequence import (
    RunFolder,
    evaluate_run,
    load_tasks,
    run_order,
)

# Loading it would fail, so what is refused was refused before.
NOWHERE = EvaluateSettings(model="./nowhere", limit=3)


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="two tasks of the order are called 'demo-mood'"):
        load_tasks(["demo-mood", "demo-topic", "demo-mood"], DataFields(limit=3))


def test_the_past_of_a_run_protects_what_was_asked_for(tiny_llama: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        order="demo-topic,demo-mood", model=str(tiny_llama), dtype="float32", max_steps=1, limit=8,
        decode="rank", energy="abs", last=1, decay=0.5, curvature_rows=0,
    )  # fmt: skip
    run_order(settings, tmp_path / "run")
    kind = read_past(tmp_path / "run" / "wpast.safetensors").record.energy
    assert (kind.kind, kind.last, kind.decay) == ("abs", 1, 0.5)
    # What a stage is compared with is what it was trained against.
    before = past_before(tmp_path / "run/stages/02-demo-mood")
    assert [task.name for task in before.tasks] == ["demo-topic"]
    assert before.record.energy == kind


def test_a_stage_that_is_gone_is_not_trained_on_what_came_after_it(
    finished: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    settings = run.settings()
    rows = json.loads(run.results.read_text())["matrix"]
    shutil.rmtree(run.stage(1, "demo-mood"))
    for again in (lambda: run_order(settings, run.path), lambda: evaluate_run(run.path, NOWHERE)):
        with pytest.raises(SettingsError, match="02-demo-mood is not there, but 03-demo-place"):
            again()
    shutil.rmtree(run.stage(2, "demo-place"))
    with pytest.raises(SettingsError, match="is not the sum of the 1 stages before this one"):
        run_order(settings, run.path)
    run.past.unlink()
    assert run_order(settings, run.path)["matrix"] == rows


@pytest.mark.parametrize(
    "changed", [{"decay": 0.5}, {"last": 1}, {"shrink": 10.0}, {"energy": "rss"}]
)
def test_a_past_that_was_changed_meanwhile_is_not_trained_on(
    finished: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run.stage(2, "demo-place"))
    run.past.unlink()
    stages = [run.stage(0, "demo-topic"), run.stage(1, "demo-mood")]
    accumulate(stages, run.past, **changed)
    with pytest.raises(SettingsError, match="was changed since"):
        run_order(run.settings(), run.path)


def test_what_each_task_alone_scored_is_looked_at_before_anything_is_trained(
    finished: Path, tmp_path: Path
) -> None:
    settings = RunFolder(finished).settings()
    single = tmp_path / "single"
    for content, error, words in (
        (None, StorageError, "No such file"),
        ([], StorageError, "holds list"),
        ({"method": "ella"}, SettingsError, "is a run of ella, not of single"),
        ({"method": "single", "row_scores": [1]}, StorageError, "has no sound row_scores"),
        (
            {"method": "single", "row_scores": {"demo-mood": {"demo-mood": [1.0]}}},
            SettingsError,
            "demo-mood was scored alone on 1 test rows, here on 4",
        ),
    ):
        if content is not None:
            single.mkdir(exist_ok=True)
            (single / "results.json").write_text(json.dumps(content))
        with pytest.raises(error, match=words):
            run_order(settings, tmp_path / "run", single=single)
    assert not (tmp_path / "run").exists()


def test_a_task_that_asks_otherwise_makes_another_run_and_other_scores(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "parcels"
    folder.mkdir()
    for split in ("train", "test"):
        rows = "".join(f"{split} {i},{'late' if i % 2 else 'broken'}\n" for i in range(6))
        (folder / f"{split}.csv").write_text("text,label\n" + rows)
    settings = RunSettings(
        order=str(folder), model=str(tiny_llama), dtype="float32", max_steps=1, decode="rank",
        curvature_rows=0,
    )  # fmt: skip
    run = tmp_path / "run"
    run_order(settings, run)
    cell = run / "scores/01-parcels/parcels.json"
    before = json.loads(cell.read_text())["key"]
    (folder / "task.yaml").write_text("instruction: What is wrong?\n")
    with pytest.raises(SettingsError, match="instructions, labels or metrics have changed since"):
        run_order(settings, run)
    with pytest.raises(SettingsError, match="its task-digest is"):
        run_order(settings, tmp_path / "other", first_stage=run)
    evaluate_run(run, EvaluateSettings())
    assert json.loads(cell.read_text())["key"] != before


def test_a_first_stage_that_is_refused_leaves_the_folder_free(
    tiny_llama: Path, tmp_path: Path
) -> None:
    settings = RunSettings(order="demo-topic", model=str(tiny_llama), limit=4, max_steps=1)
    for method, other in (("joint", "one"), ("ella", "none")):
        asked = settings.model_copy(update={"method": method})
        with pytest.raises(
            SettingsError, match=r"has one stage, of all|has no finished first stage"
        ):
            run_order(asked, tmp_path / "run", first_stage=tmp_path / other)
        assert not RunFolder(tmp_path / "run").record.exists()


def test_another_tokenizer_makes_another_run_and_other_scores(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = RunSettings(
        order="demo-topic", model=str(model), dtype="float32", max_steps=1, decode="rank",
        limit=4, curvature_rows=0,
    )  # fmt: skip
    run = tmp_path / "run"
    run_order(settings, run)
    cell = run / "scores/01-demo-topic/demo-topic.json"
    before = json.loads(cell.read_text())
    # The same weights read other tokens.
    rules = json.loads((model / "tokenizer.json").read_text())
    rules["normalizer"] = {"type": "Lowercase"}
    (model / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(SettingsError, match="its tokenizer's rules have changed since"):
        run_order(settings, run)
    with pytest.raises(SettingsError, match="its tokenizer is"):
        run_order(settings, tmp_path / "other", first_stage=run)
    evaluate_run(run, EvaluateSettings())
    after = json.loads(cell.read_text())
    assert after["key"] != before["key"]
    assert after["tokenizer"] != before["tokenizer"]


def test_a_prompt_that_cannot_fit_is_told_before_anything_is_trained(
    tiny_llama: Path, tmp_path: Path
) -> None:
    settings = RunSettings(
        order="demo-topic,demo-mood", model=str(tiny_llama), limit=4, max_source_length=8
    )
    with pytest.raises(TaskError, match="demo-topic: instruction and options alone are"):
        run_order(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_names_that_results_need_are_no_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    with pytest.raises(SettingsError, match="no task can be called 'base' here"):
        load_tasks([str(folder)], DataFields())


@pytest.mark.parametrize("method", ["ella", "seqlora", "replay"])
def test_a_run_that_is_gone_on_with_ends_as_one_of_the_whole_order(
    tiny_llama: Path, tmp_path: Path, method: Any
) -> None:
    def learn(order: str, folder: str) -> dict[str, Any]:
        settings = RunSettings(
            order=order, model=str(tiny_llama), dtype="float32", max_steps=2, limit=8,
            limit_test=4, decode="rank", method=method, curvature_rows=4, cells="all",
        )  # fmt: skip
        return run_order(settings, tmp_path / folder)

    whole = learn("demo-topic,demo-mood,demo-place", "whole")
    learn("demo-topic,demo-mood", "grown")
    first = RunFolder(tmp_path / "grown").stage(0, "demo-topic") / "adapter_model.safetensors"
    trained = first.stat().st_mtime_ns
    grown = learn("demo-topic,demo-mood,demo-place", "grown")
    assert first.stat().st_mtime_ns == trained
    assert grown["matrix"] == whole["matrix"]
    assert grown["row_scores"] == whole["row_scores"]
    last = [RunFolder(tmp_path / one).stage(2, "demo-place") for one in ("whole", "grown")]
    one, other = ((stage / "adapter_model.safetensors").read_bytes() for stage in last)
    assert one == other
    if method == "ella":
        pasts = [read_past(RunFolder(tmp_path / one).past).digest for one in ("whole", "grown")]
        assert pasts[0] == pasts[1]
