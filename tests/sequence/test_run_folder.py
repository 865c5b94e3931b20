"""A run's folder belongs to one run: what may change when it goes on, and what may not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError
from ella_cli.run_paths import stage_name
from ella_cli.sequence import RunFolder
from ella_cli.sequence.run_folder import stage_names
from ella_cli.training.methods import METHODS

FACTS = {
    "base": {"model": "smollm2", "fingerprint": "b0"},
    "data_fingerprints": {"amazon": "d0"},
    "precision": "bfloat16",
    "processes": 1,
}


def _claim(
    folder: Path, facts: dict[str, Any] = FACTS, order: str = "amazon", **settings: Any
) -> Path:
    run = RunFolder(folder)
    run.claim(RunSettings(order=order, **settings), order.split(","), f"ella run {order}", facts)
    return run.record


def _facts_of(**rows: str) -> dict[str, Any]:
    return {**FACTS, "data_fingerprints": rows}


@pytest.mark.parametrize(
    "name", ["wpast.safetensors", "adapter_config.json", "stages", "results.json"]
)
def test_a_folder_of_other_things_is_not_claimed(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").touch()
    (tmp_path / "run" / name).touch()
    with pytest.raises(SettingsError, match=f"is no run's folder, and has {name} already"):
        _claim(tmp_path / "run")
    assert {one.name for one in (tmp_path / "run").iterdir()} == {"log.txt", name}
    (tmp_path / "run" / name).unlink()
    assert _claim(tmp_path / "run").is_file()


def test_a_claim_is_written_once_and_held_to(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run")
    before = record.read_bytes()
    document = json.loads(before)
    assert document["order"] == ["amazon"]
    assert document["settings"]["order"] == "amazon"
    assert _claim(tmp_path / "run").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 7}, "its seed is 0, now it is 7"),
        ({"method": "olora"}, "its method is ella, now it is olora"),
        ({"lam": 5.0}, "its lambda is None, now it is 5.0"),
        (
            {"facts": {**FACTS, "data_fingerprints": {"amazon": "d1"}}},
            "its tasks' rows have changed since",
        ),
        ({"facts": {**FACTS, "base": {"model": "smollm2", "fingerprint": "b1"}}}, "its base is"),
        ({"facts": {**FACTS, "processes": 2}}, "its processes is 1, now it is 2"),
        # What auto became on another machine.
        (
            {"facts": {**FACTS, "precision": "float32"}},
            "its precision is bfloat16, now it is float32",
        ),
    ],
)
def test_another_run_is_refused_and_the_record_stays(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    record = _claim(tmp_path / "run")
    before = record.read_bytes()
    with pytest.raises(SettingsError, match=words):
        _claim(tmp_path / "run", **change)
    assert record.read_bytes() == before


def test_a_run_from_before_importance_goes_on_where_it_is_one(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run")
    document = json.loads(record.read_text())
    del document["settings"]["importance"]
    record.write_text(json.dumps(document))
    with pytest.raises(SettingsError, match=r"its importance is 1\.0, now it is auto"):
        _claim(tmp_path / "run", importance="auto")
    _claim(tmp_path / "run")


def test_a_run_of_another_optimizer_goes_on_where_both_step_alike(tmp_path: Path) -> None:
    _claim(tmp_path / "plain", optim="adamw", method="inclora")
    _claim(tmp_path / "plain", method="inclora")
    _claim(tmp_path / "coordinates", optim="adamw", energy="sum")
    _claim(tmp_path / "coordinates", energy="sum")
    _claim(tmp_path / "curvature", optim="adamw")
    with pytest.raises(SettingsError, match="its optim is adamw, now it is adamw-past"):
        _claim(tmp_path / "curvature")


def test_a_run_that_names_no_optimizer_is_of_adamw(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run", optim="adamw")
    document = json.loads(record.read_text())
    del document["settings"]["optim"]
    record.write_text(json.dumps(document))
    _claim(tmp_path / "run", optim="adamw")
    assert RunFolder(tmp_path / "run").settings().optim == "adamw"
    with pytest.raises(SettingsError, match="its optim is adamw, now it is adamw-past"):
        _claim(tmp_path / "run")


def test_a_precision_may_be_asked_for_in_another_way(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run")
    _claim(tmp_path / "run", dtype="bfloat16")
    # Of a run from before it was noted, only what was asked for is known.
    document = json.loads(record.read_text())
    del document["precision"]
    record.write_text(json.dumps(document))
    _claim(tmp_path / "run")
    with pytest.raises(SettingsError, match="its dtype is auto, now it is bfloat16"):
        _claim(tmp_path / "run", dtype="bfloat16")


def test_a_folder_is_worked_in_by_one_command_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hold = (
        "import sys; from pathlib import Path; from ella_cli.sequence import RunFolder\n"
        f"with RunFolder(Path({str(folder)!r})).at_work(): print('held', flush=True); input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", hold], stdin=pipe, stdout=pipe, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "held\n"
        busy = pytest.raises(SettingsError, match="another command is at work in")
        with busy, RunFolder(folder).at_work():
            pass
        # Killed, it has no chance to let go of it.
        one.kill()
    with RunFolder(folder).at_work():
        pass


def test_what_decides_no_result_may_change(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run")
    before = record.read_bytes()
    _claim(tmp_path / "run", device="cuda", per_device_eval_batch_size=3, save_steps=5)
    assert record.read_bytes() == before


@pytest.mark.parametrize("text", ["[]", "{}", '{"settings": 3}', '{"settings": {}, "base": 3}'])
def test_a_record_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SettingsError, match=r"run\.json is not the record of a run"):
        _claim(tmp_path)


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    assert RunFolder(_claim(tmp_path / "run", lam=3.0).parent).settings().lam == 3.0
    (tmp_path / "run.json").write_text('{"settings": {"order": "1", "warp-speed": 9}}')
    with pytest.raises(SettingsError, match="warp-speed"):
        RunFolder(tmp_path).settings()
    with pytest.raises(SettingsError, match=r"holds no run\.json"):
        RunFolder(tmp_path / "nowhere").settings()


def test_stages_sort_as_they_were_trained() -> None:
    order = [f"task{i}" for i in range(12)]
    names = [stage_name(i, name) for i, name in enumerate(stage_names(METHODS["ella"], order))]
    assert names == sorted(names)
    assert stage_names(METHODS["joint"], order) == ["joint"]


def test_a_stage_without_its_manifest_is_not_finished(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.stage(0, "amazon").mkdir(parents=True)
    assert run.adapter(0, "amazon") is None


def test_an_order_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    record = _claim(tmp_path / "run", lam=[0.0])
    longer = _facts_of(amazon="d0", yahoo="d1")
    _claim(tmp_path / "run", longer, "amazon,yahoo", lam=[0.0, 5.0])
    document = json.loads(record.read_bytes())
    assert document["order"] == ["amazon", "yahoo"]
    assert document["command"] == "ella run amazon,yahoo"
    assert document["settings"]["lambda"] == [0.0, 5.0]
    assert document["data_fingerprints"] == {"amazon": "d0", "yahoo": "d1"}
    before = record.read_bytes()
    _claim(tmp_path / "run", longer, "amazon,yahoo", lam=[0.0, 5.0])
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("order", "rows", "settings", "words"),
    [
        ("yahoo,amazon", {"amazon": "d0", "yahoo": "d1"}, {}, "its order is amazon, now it is"),
        ("amazon,yahoo", {"amazon": "d9", "yahoo": "d1"}, {}, "its tasks' rows have changed"),
        ("amazon,yahoo", {"amazon": "d0", "yahoo": "d1"}, {"seed": 7}, "its seed is 0"),
    ],
)
def test_an_order_does_not_go_on_on_other_ground(
    tmp_path: Path, order: str, rows: dict[str, str], settings: dict[str, Any], words: str
) -> None:
    record = _claim(tmp_path / "run")
    before = record.read_bytes()
    with pytest.raises(SettingsError, match=words):
        _claim(tmp_path / "run", _facts_of(**rows), order, **settings)
    assert record.read_bytes() == before


def test_an_order_does_not_get_shorter(tmp_path: Path) -> None:
    _claim(tmp_path / "run", _facts_of(amazon="d0", yahoo="d1"), "amazon,yahoo")
    with pytest.raises(SettingsError, match="its order is amazon,yahoo, now it is amazon"):
        _claim(tmp_path / "run")


def test_what_was_not_trained_yet_may_be_another_task_or_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    record = _claim(run.path)
    (run.stage(0, "amazon")).mkdir(parents=True)
    (run.stage(0, "amazon") / "ella.json").write_text("{}")
    _claim(run.path, _facts_of(amazon="d0", typo="d8"), "amazon,typo")
    _claim(run.path, _facts_of(amazon="d0", yahoo="d1", dbpedia="d2"), "amazon,yahoo,dbpedia")
    assert json.loads(record.read_bytes())["order"] == ["amazon", "yahoo", "dbpedia"]
    (run.stage(1, "yahoo")).mkdir()
    (run.stage(1, "yahoo") / "ella.json").write_text("{}")
    with pytest.raises(SettingsError, match="its order is amazon,yahoo,dbpedia, now it is amazon"):
        _claim(run.path)
    with pytest.raises(SettingsError, match="its tasks' rows have changed"):
        _claim(run.path, _facts_of(amazon="d0", yahoo="d9"), "amazon,yahoo")
    _claim(run.path, _facts_of(amazon="d0", yahoo="d1"), "amazon,yahoo")
    assert json.loads(record.read_bytes())["data_fingerprints"] == {"amazon": "d0", "yahoo": "d1"}


def test_what_is_learned_all_at_once_has_no_more_tasks_at_its_end(tmp_path: Path) -> None:
    _claim(tmp_path / "run", method="joint")
    with pytest.raises(SettingsError, match="its order is amazon, now it is amazon,yahoo"):
        _claim(tmp_path / "run", _facts_of(amazon="d0", yahoo="d1"), "amazon,yahoo", method="joint")
