"""The main job through the `ella` process: train, accumulate, evaluate, inspect, run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ella_cli.past import read_past

SHORT = ("--max-steps", 3, "--dtype", "float32", "--learning-rate", "0.01")


def _run_flags(model: Path, method: str) -> list[object]:
    order = "tasks/animals,tasks/colours"
    own = ["--order", order, "--model", model, "--method", method, "--decode", "rank"]
    return [*own, *SHORT]


def test_no_two_tasks_of_a_past_share_a_seed_where_others_were_taken_out(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    common = ("--model", tiny_llama, *SHORT, "--json")
    ella("train", "--task", "tasks/animals", "-o", "a1", *common)
    manifest = json.loads((tmp_path / "a1" / "ella.json").read_text())
    # As if it had been the second, and the first were gone.
    (tmp_path / "a1" / "ella.json").write_text(json.dumps(manifest | {"order_index": 1}))
    ella("accumulate", "a1", "--past", "w")
    train = ("train", "--task", "tasks/colours", *common, "-o")
    assert json.loads(ella(*train, "a2", "--past", "w").stdout)["order_index"] == 2
    alone = ("--method", "seqlora", "--earlier", "a1")
    assert json.loads(ella(*train, "a3", *alone).stdout)["order_index"] == 2


def test_one_task_after_another_by_hand(fresh_ella: Any, tiny_llama: Path, own_tasks: Path) -> None:
    common = ("--model", tiny_llama, *SHORT, "--json")
    first = json.loads(fresh_ella("train", "--task", "tasks/animals", "-o", "a1", *common).stdout)
    assert first["task"] == "animals"
    assert first["past"] == {"digest": None, "tasks": []}

    fresh_ella("accumulate", "a1", "--past", "wpast.safetensors")
    second = json.loads(
        fresh_ella(
            "train", "--task", "tasks/colours", "--past", "wpast.safetensors", "-o", "a2", *common
        ).stdout
    )
    assert second["past"]["tasks"] == ["animals"]
    assert second["order_index"] == 1
    assert second["curves"]["penalty"][-1] > 0

    fresh_ella("accumulate", "a2", "--past", "wpast.safetensors")
    order = ("--order", "tasks/animals,tasks/colours", "--adapters", "a1", "--adapters", "a2")
    model = ("--model", tiny_llama, "--dtype", "float32")
    scores = json.loads(fresh_ella("eval", *order, *model, "-o", "scores", "--json").stdout)
    assert scores["order"] == ["animals", "colours"]
    assert len(scores["matrix"]) == 2
    assert scores["test_rows"] == {"animals": 9, "colours": 9}
    # The past file is the sum of both, so it scores as the last stage does.
    summed = ("--past", "wpast.safetensors", *order[:2], *model)
    past = json.loads(fresh_ella("eval", *summed, "-o", "past-scores", "--json").stdout)
    assert past["matrix"] == [[None, None], scores["matrix"][1]]
    assert past["row_scores"]["colours"] == scores["row_scores"]["colours"]
    assert past["oa"] == scores["oa"]
    assert past["bwt"] is None
    for what in (
        ("energy", "wpast.safetensors"),
        ("spectrum", "wpast.safetensors"),
        ("adapter", "a2"),
    ):
        assert fresh_ella("inspect", *what).stdout


def test_an_adapter_is_a_stock_peft_adapter(
    ella: Any, tiny_model: Path, own_tasks: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    ella("train", "--task", "tasks/animals", "-o", "a1", "--model", tiny_model, *SHORT)
    config = json.loads((tmp_path / "a1" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert {path.name for path in (tmp_path / "a1").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", "ella.json",
        "curvature.safetensors",
    }  # fmt: skip
    t5 = config["task_type"] == "SEQ_2_SEQ_LM"
    loader = AutoModelForSeq2SeqLM if t5 else AutoModelForCausalLM
    model = PeftModel.from_pretrained(loader.from_pretrained(tiny_model), tmp_path / "a1")
    b = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert any(p.abs().sum() > 0 for p in b)


@pytest.mark.parametrize(
    "method", ["ella", "inclora", "seqlora", "olora", "replay", "single", "joint"]
)
def test_every_method_runs_an_order(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path, method: str
) -> None:
    done = ella("run", *_run_flags(tiny_llama, method), "-o", "run", "--json")
    results = json.loads(done.stdout)
    asked = {
        "order", "matrix", "base", "oa", "bwt", "forgetting", "learned", "fwt_zero_shot",
        "fwt_plasticity", "method", "lambda", "seed", "decode", "test_rows",
    }  # fmt: skip
    assert asked <= results.keys()
    assert results["method"] == method
    ran = [[score is not None for score in row] for row in results["matrix"]]
    expected = {
        "single": [[True, False], [False, True]],
        "joint": [[False, False], [True, True]],
    }.get(method, [[True, True], [True, True]])
    assert ran == expected
    # So many steps a task were asked for, and a joint stage has both tasks.
    manifests = (tmp_path / "run").rglob("ella.json")
    assert sum(json.loads(path.read_text())["steps"] for path in manifests) == 2 * SHORT[1]


def test_every_kind_of_model_runs_an_order(ella: Any, tiny_model: Path, own_tasks: Path) -> None:
    results = json.loads(ella("run", *_run_flags(tiny_model, "ella"), "-o", "run", "--json").stdout)
    assert results["oa"] is not None


def test_the_figures_need_only_some_cells_and_the_rest_can_follow(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    order = ("--order", "tasks/animals,tasks/colours,demo-mood", "--limit", 9)
    flags = ("run", *_run_flags(tiny_llama, "ella"), *order, "-o", "run", "--json")
    some = json.loads(ella(*flags, "--cells", "figures").stdout)
    ran = [[score is not None for score in row] for row in (some["base"], *some["matrix"])]
    assert ran == [[False, True, True], [True, True, False], [False, True, True], [True] * 3]
    kept = tmp_path / "run" / "scores" / "03-demo-mood" / "animals.json"
    written = kept.stat().st_mtime_ns

    whole = json.loads(ella(*flags).stdout)
    assert all(None not in row for row in (whole["base"], *whole["matrix"]))
    for figure in ("oa", "bwt", "learned", "fwt_zero_shot"):
        assert some[figure] == whole[figure] is not None
    assert kept.stat().st_mtime_ns == written
    # What is there is shown, though only some of it is asked for.
    again = json.loads(ella("eval", "--run", "run", "--cells", "figures", "--json").stdout)
    assert again["matrix"] == whole["matrix"]


def test_a_first_stage_taken_from_another_run_changes_no_result(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    ella("run", *_run_flags(tiny_llama, "inclora"), "-o", "other")
    flags = ("run", *_run_flags(tiny_llama, "ella"), "--json")
    whole = json.loads(ella(*flags, "-o", "whole").stdout)
    done = ella(*flags, "--first-stage", "other", "-o", "quick")
    assert "01-animals taken from other" in done.stderr
    assert json.loads(done.stdout) == whole
    past = "wpast.safetensors"
    tasks = [read_past(tmp_path / run / past).tasks for run in ("whole", "quick")]
    assert [task.digest for task in tasks[0]] == [task.digest for task in tasks[1]]


def test_a_single_run_gives_plasticity(ella: Any, tiny_llama: Path, own_tasks: Path) -> None:
    ella("run", *_run_flags(tiny_llama, "single"), "-o", "single")
    done = ella("run", *_run_flags(tiny_llama, "ella"), "-o", "run", "--single", "single", "--json")
    results = json.loads(done.stdout)
    plasticity = results["matrix"][1][1] - results["single"][1]
    assert results["fwt_plasticity"] == pytest.approx(plasticity)


def test_killed_again_and_again_a_run_ends_with_the_same_results(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    flags = _run_flags(tiny_llama, "ella")
    whole = json.loads(ella("run", *flags, "-o", "whole", "--json").stdout)
    command = [sys.executable, "-m", "ella_cli", "run", *flags, "-o", "killed", "-q"]
    kills = 0
    # Each life lasts until one more result has appeared; then it is killed without a warning.
    for wanted in (
        "run.json",
        "stages/01-animals",
        "stages/02-colours",
        "scores/base/animals.json",
    ):
        life = subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not (tmp_path / "killed" / wanted).exists() and life.poll() is None:
            assert time.monotonic() < deadline
            os.sched_yield()
        if life.poll() is None:
            life.send_signal(signal.SIGKILL)
            kills += 1
        life.wait()
    assert kills >= 3
    resumed = json.loads(ella("run", *flags, "-o", "killed", "--json").stdout)
    assert resumed == whole
    # An adapter is equal to the bit, not only in its scores.
    for stage in ("01-animals", "02-colours"):
        file = Path("stages") / stage / "adapter_model.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_ctrl_c_says_how_to_go_on(tiny_llama: Path, own_tasks: Path, tmp_path: Path) -> None:
    flags = [*_run_flags(tiny_llama, "ella"), "--max-steps", 100000]
    command = [sys.executable, "-m", "ella_cli", "run", *flags, "-o", "run", "-q"]
    life = subprocess.Popen(
        list(map(str, command)),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that started the tests in the background has SIGINT ignored, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "run" / "run.json").exists():
        assert life.poll() is None
        os.sched_yield()
    life.send_signal(signal.SIGINT)
    _, words = life.communicate(timeout=60)
    assert life.returncode == 130
    assert "the same command goes on" in words
    assert "Traceback" not in words


def test_a_folder_of_another_run_is_not_touched(
    ella: Any, tiny_llama: Path, own_tasks: Path
) -> None:
    flags = _run_flags(tiny_llama, "inclora")
    ella("run", *flags, "-o", "run")
    done = ella("run", *flags, "--seed", 7, "-o", "run", code=2)
    assert "its seed is 0, now it is 7" in done.stderr


def test_evaluation_goes_on_where_it_stopped(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    ella("run", *_run_flags(tiny_llama, "inclora"), "-o", "run")
    cells = sorted((tmp_path / "run" / "scores").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in cells}
    cells[0].unlink()
    ella("eval", "--run", "run")
    after = {path: path.stat().st_mtime_ns for path in cells}
    assert {path for path in cells if after[path] != before[path]} == {cells[0]}


def test_settings_come_from_a_file_and_flags_win(ella: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("learning-rate: 0.5\nseed: 3\nlambda: 7\n")
    done = ella("run", "--config", "run.yaml", "--seed", 4, "-o", "run", "--dry-run", "--json")
    settings = json.loads(done.stdout)["settings"]
    assert (settings["learning_rate"], settings["seed"], settings["lambda"]) == (0.5, 4, 7.0)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_a_file_that_config_takes(ella: Any, tmp_path: Path) -> None:
    shown = ella("run", "--order", 4, "--lora-rank", 16, "-o", "run", "--dry-run").stdout
    (tmp_path / "run.yaml").write_text(shown)
    again = ella("run", "--config", "run.yaml", "-o", "run", "--dry-run").stdout
    assert again == shown


def test_a_warning_about_the_rows_survives_quiet(
    ella: Any, tiny_llama: Path, own_tasks: Path
) -> None:
    animals = own_tasks / "animals"
    (animals / "test.csv").write_text((animals / "train.csv").read_text())
    flags = ("--model", tiny_llama, *SHORT, "-q")
    done = ella("train", "--task", "tasks/animals", "-o", "a1", *flags)
    assert "warning: animals: 24 of 24 test rows" in done.stderr
    assert "train animals" not in done.stderr


def test_verbose_shows_what_the_libraries_say(
    fresh_ella: Any, tiny_llama: Path, own_tasks: Path
) -> None:
    flags = ("--task", "tasks/animals", "--model", tiny_llama, *SHORT)
    loads = "loading configuration file"
    assert loads not in fresh_ella("train", *flags, "-o", "a1").stderr
    assert loads in fresh_ella("train", *flags, "-v", "-o", "a2").stderr
