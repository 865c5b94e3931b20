"""What lies on disk already is scored: a run again, adapters, a past."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import EvaluateSettings, RunSettings
from ella_cli.errors import (
    AdapterError,
    ModelError,
    PastError,
    SettingsError,
)
from ella_cli.evaluate import grid
from ella_cli.progress import Silence
from ella_cli.report.metrics import metric_values
from ella_cli.report.results import read_run
from ella_cli.sequence import (
    RunFolder,
    evaluate_adapters,
    evaluate_past,
    evaluate_run,
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
