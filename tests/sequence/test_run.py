"""What a sequence is made of, and what is refused before a model is loaded for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import DataFields, EvaluateSettings, RunSettings
from ella_cli.errors import (
    AdapterError,
    ModelError,
    PastError,
    SettingsError,
    StorageError,
    TaskError,
)
from ella_cli.evaluate import grid
from ella_cli.inspect.run_stages import past_before
from ella_cli.past import accumulate, read_past
from ella_cli.progress import Silence
from ella_cli.report.metrics import metric_values
from ella_cli.report.results import read_run
from ella_cli.sequence import (
    RunFolder,
    evaluate_adapters,
    evaluate_past,
    evaluate_run,
    load_tasks,
    run_order,
)
from ella_cli.sequence.score import stages_of
from ella_cli.training.methods import METHODS

# Loading it would fail, so what is refused was refused before.
NOWHERE = EvaluateSettings(model="./nowhere", limit=3)


def _adapter(folder: Path, task: str) -> Adapter:
    path = folder / task
    path.mkdir(parents=True)
    key = "base_model.model.layers.0.q"
    factors = {f"{key}.lora_B.weight": torch.ones(3, 1), f"{key}.lora_A.weight": torch.ones(1, 5)}
    save_file(factors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    return read_adapter(path)


def test_more_adapters_than_tasks_are_refused(tmp_path: Path) -> None:
    folders = [_adapter(tmp_path, name).path for name in ("a", "b")]
    with pytest.raises(SettingsError, match="2 adapters for the 1 tasks of order demo-mood"):
        evaluate_adapters(folders, "demo-mood", NOWHERE, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no-adapter does not exist"):
        evaluate_adapters([tmp_path / "no-adapter"], "demo-mood", NOWHERE, tmp_path / "scores")


def test_a_file_that_is_no_past_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PastError, match=r"no\.safetensors"):
        evaluate_past(tmp_path / "no.safetensors", "demo-mood", NOWHERE, tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_the_results_of_a_run_are_not_written_over(tmp_path: Path) -> None:
    folder = _adapter(tmp_path, "a").path
    run = RunFolder(tmp_path / "run")
    run.claim(RunSettings(order="demo-mood", model="./nowhere"), ["demo-mood"], "ella run", {})
    with pytest.raises(SettingsError, match="is a run, whose own results would be lost"):
        evaluate_adapters([folder], "demo-mood", NOWHERE, run.path)
    with pytest.raises(SettingsError, match="is a run, whose own results would be lost"):
        evaluate_past(tmp_path / "any.safetensors", "demo-mood", NOWHERE, run.path)


def test_a_run_is_scored_on_its_own_order_only(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"holds no run\.json"):
        evaluate_run(tmp_path, NOWHERE)
    settings = RunSettings(order="demo-mood,demo-topic", model="./nowhere")
    RunFolder(tmp_path).claim(settings, ["demo-mood", "demo-topic"], "ella run", {})
    with pytest.raises(SettingsError, match="is a run of order demo-mood,demo-topic, not of demo"):
        evaluate_run(tmp_path, NOWHERE, order="demo")


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="two tasks of the order are called 'demo-mood'"):
        load_tasks(["demo-mood", "demo-topic", "demo-mood"], DataFields(limit=3))


@pytest.mark.parametrize(
    ("method", "sums", "tasks"),
    [
        ("ella", [["a"], ["a", "b"], ["a", "b", "c"]], [None, None, None]),
        ("olora", [["a"], ["a", "b"], ["a", "b", "c"]], [None, None, None]),
        ("seqlora", [["a"], ["b"], ["c"]], [None, None, None]),
        ("single", [["a"], ["b"], ["c"]], [(0,), (1,), (2,)]),
    ],
)
def test_what_the_model_is_after_each_stage(
    tmp_path: Path, method: str, sums: list[list[str]], tasks: list[tuple[int, ...] | None]
) -> None:
    adapters = [_adapter(tmp_path, name) for name in "abc"]
    stages = stages_of(METHODS[method], "abc", adapters)
    assert [[adapter.task for adapter in stage.adapters] for stage in stages] == sums
    assert [stage.tasks for stage in stages] == tasks
    assert [stage.name for stage in stages] == ["01-a", "02-b", "03-c"]
    # Scores are filed under it, so what a stranger's adapter calls itself does not count.
    assert stages_of(METHODS[method], "xyz", adapters)[0].name == "01-x"


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


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = RunSettings(
        order="demo-topic,demo-mood,demo-place", model=str(tiny_llama), dtype="float32",
        max_steps=1, limit=8, limit_test=4, decode="rank", curvature_rows=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_order(settings, folder)
    return folder


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


def test_what_tasks_scored_alone_stays_with_a_run_that_is_scored_again(
    finished: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    single = tmp_path / "single"
    single.mkdir()
    alone = {name: {name: [1.0, 0.0, 1.0, 1.0]} for name in ("demo-topic", "demo-mood")}
    document = {"method": "single", "row_scores": alone}
    (single / "results.json").write_text(json.dumps(document))
    given = run_order(run.settings(), run.path, single=single)
    assert given["single"] == [0.75, 0.75, None]
    assert evaluate_run(run.path, EvaluateSettings()) == given
    assert run_order(run.settings(), run.path) == given
    # Scored otherwise, they are no measure of these.
    heard: list[str] = []

    class Heard(Silence):
        def warn(self, words: str) -> None:
            heard.append(words)

    asked = EvaluateSettings(limit_test=2)
    assert evaluate_run(run.path, asked, progress=Heard())["single"] is None
    assert "plasticity FWT is left out: demo-topic was scored alone on 4 test rows" in heard[-1]


def test_results_that_were_cut_are_made_again(finished: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    whole = json.loads(run.results.read_text())
    run.results.write_text(run.results.read_text()[:100])
    assert evaluate_run(run.path, EvaluateSettings()) == whole


def test_a_run_is_scored_in_the_precision_it_was_trained_in(
    finished: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    record = json.loads(run.record.read_text())
    assert record["precision"] == "float32"
    cell = run.scores / "01-demo-topic/demo-topic.json"
    before = cell.stat().st_mtime_ns
    # As of a run on another machine, where auto is bfloat16 here, or the other way round.
    record["settings"]["dtype"] = "auto"
    run.record.write_text(json.dumps(record))
    assert evaluate_run(run.path, EvaluateSettings())["precision"] == "float32"
    assert cell.stat().st_mtime_ns == before
    assert evaluate_run(run.path, EvaluateSettings(dtype="bfloat16"))["precision"] == "bfloat16"
    assert cell.stat().st_mtime_ns > before


def test_a_cell_of_before_precision_was_noted_is_known_by_what_was_asked_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    cell = run.scores / "01-demo-topic/demo-topic.json"
    keys = grid._keys
    with monkeypatch.context() as patch:
        patch.setattr(grid, "_keys", lambda *facts: (keys(*facts)[-1],) * 3)
        evaluate_run(run.path, EvaluateSettings())
    document = json.loads(cell.read_text())
    assert document.pop("precision") == "float32"
    assert document.pop("tokenizer")
    cell.write_text(json.dumps(document))
    before = cell.stat().st_mtime_ns
    evaluate_run(run.path, EvaluateSettings())
    assert cell.stat().st_mtime_ns == before


def test_a_run_at_work_is_not_scored_beside_it_and_clears_what_was_cut_off(
    finished: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    cut_off = run.stages / ".03-demo-place.abcd1234.tmp"
    cut_off.mkdir()
    with run.at_work():
        assert not cut_off.exists()
        with pytest.raises(SettingsError, match="another command is at work in"):
            evaluate_run(run.path, EvaluateSettings())


def test_results_say_which_optimizer_was_in_effect(finished: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    # No curvature was measured to step along.
    assert json.loads(run.results.read_text())["optim"] == "adamw"
    record = json.loads(run.record.read_text())
    record["settings"]["curvature_rows"] = 8
    run.record.write_text(json.dumps(record))
    evaluate_run(run.path, EvaluateSettings())
    assert json.loads(run.results.read_text())["optim"] == "adamw-past"


def test_a_run_is_not_scored_on_another_base(finished: Path, tiny_gpt2: Path) -> None:
    written = (finished / "results.json").read_bytes()
    with pytest.raises(ModelError, match="was made on a base with fingerprint"):
        evaluate_run(finished, EvaluateSettings(model=str(tiny_gpt2)))
    assert (finished / "results.json").read_bytes() == written


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


def test_adapters_in_another_order_than_the_tasks_are_told(
    finished: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    stages = [finished / "stages" / name for name in ("02-demo-mood", "01-demo-topic")]
    warnings = _warnings_of(stages, tmp_path, tiny_llama)
    assert "02-demo-mood has learned demo-mood and stands for demo-topic" in warnings[0]
    # It was trained on a past that is not there.
    on_top = "demo-mood was trained on top of demo-topic, not in the adapters before it"
    assert on_top in warnings


def test_adapters_that_do_not_add_up_are_told(
    finished: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    stages = []
    for name in ("01-demo-topic", "02-demo-mood"):
        stage = shutil.copytree(finished / "stages" / name, tmp_path / name)
        manifest = json.loads((stage / "ella.json").read_text())
        manifest |= {"method": "seqlora", "past": {"digest": None, "tasks": []}}
        (stage / "ella.json").write_text(json.dumps(manifest))
        stages.append(stage)
    (warning,) = _warnings_of(stages, tmp_path, tiny_llama)
    assert "02-demo-mood is of method seqlora, a model by itself and no term of a sum" in warning


def _warnings_of(stages: list[Path], folder: Path, model: Path) -> list[str]:
    """What is warned of when the sums of these adapters are scored."""
    warnings: list[str] = []

    class Heard(Silence):
        def warn(self, words: str) -> None:
            warnings.append(words)

    settings = EvaluateSettings(
        model=str(model), dtype="float32", limit=4, limit_test=2, decode="rank"
    )
    evaluate_adapters(stages, "demo-topic,demo-mood", settings, folder / "scores", progress=Heard())
    return warnings


def test_one_task_of_a_past_tells_nothing_of_how_it_was_learned(
    finished: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    settings = EvaluateSettings(
        model=str(tiny_llama), dtype="float32", limit=4, limit_test=2, decode="rank"
    )
    folder = tmp_path / "scores"
    document = evaluate_past(finished / "wpast.safetensors", "demo-topic", settings, folder)
    assert document["oa"] is not None
    assert document["learned"] is None
    # Nor does a report of it.
    assert "learned" not in [
        key for key, value in metric_values(read_run(folder)).items() if value is not None
    ]
