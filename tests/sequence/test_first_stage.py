"""The first stage of another run is taken only where it would be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import read_curvature, write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError
from ella_cli.kernels import Kronecker
from ella_cli.sequence import RunFolder, has_first_stage, run_order
from ella_cli.sequence.first_stage import check_first_stage, take_first_stage

FACTS = {
    "base": {"model": "smollm2", "fingerprint": "b0"},
    "data_fingerprints": {"amazon": "d0", "yahoo": "d1"},
    "precision": "bfloat16",
    "processes": 1,
}


def _claimed(folder: Path, facts: dict[str, Any] = FACTS, **settings: Any) -> RunSettings:
    own = RunSettings(order="amazon,yahoo", **settings)
    RunFolder(folder).claim(own, ["amazon", "yahoo"], "ella run", facts)
    return own


def _finished(folder: Path, **settings: Any) -> None:
    """A run with a first stage and its scores; what is in them matters to nobody here."""
    _claimed(folder, **settings)
    for name in ("stages/01-amazon/ella.json", "stages/01-amazon/adapter_config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"format": 1, "peft_type": "LORA", "r": 1}))
    from safetensors.torch import save_file
    from torch import ones

    key = "base_model.model.layers.0.q"
    factors = {f"{key}.lora_B.weight": ones(3, 1), f"{key}.lora_A.weight": ones(1, 5)}
    save_file(factors, folder / "stages/01-amazon/adapter_model.safetensors")
    _measured(folder / "stages/01-amazon")
    for name in ("base/amazon.json", "01-amazon/amazon.json", "01-amazon/.yahoo.json.x.tmp"):
        (folder / "scores" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "scores" / name).write_text("{}")


def _measured(stage: Path, *, width: int = 1, **record: Any) -> None:
    adapter = read_adapter(stage)
    (name,) = adapter.names
    write_curvature(
        stage,
        {name: Kronecker(torch.ones(3, width), torch.ones(5, width))},
        CurvatureRecord(adapter.digest, adapter.task, rows=8, tokens=20, **record),
    )


def _take(folder: Path, other: Path, own: RunSettings) -> None:
    """As `run_order` does, but for the claim between the two."""
    run = RunFolder(folder)
    if run.adapter(0, "amazon") is None:
        check_first_stage(other, "amazon", run.read(), own)
    take_first_stage(run, other, "amazon", own)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "inclora"},
        {"method": "seqlora", "decode": "rank"},
        {"method": "ella", "lam": 3.0, "energy": "abs", "rho": 1.0, "olora_l2": 0.1},
        {"method": "ella", "last": 2, "decay": 0.5},
        {"method": "inclora", "curvature_rows": 0},
        {"method": "inclora", "curvature_rows": 0, "importance": 0.5},
        {"method": "ella", "dtype": "bfloat16"},
        {"method": "ella", "cells": "figures", "per_device_eval_batch_size": 2},
    ],
)
def test_what_protects_earlier_tasks_does_not_touch_the_first(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    _finished(tmp_path / "one", method="ella")
    own = _claimed(tmp_path / "two", **settings)
    assert has_first_stage(tmp_path / "one")
    assert not has_first_stage(tmp_path / "two")
    _take(tmp_path / "two", tmp_path / "one", own)
    # Whole files only: what another process is just writing is left behind.
    expected = _files(tmp_path / "one") - {"scores/01-amazon/.yahoo.json.x.tmp"}
    if settings["method"] == "seqlora" or not settings.get("curvature_rows", 64):
        # What it would not have measured would change what it protects.
        expected -= {"stages/01-amazon/curvature.safetensors"}
    assert _files(tmp_path / "two") == expected
    assert has_first_stage(tmp_path / "two")
    # Once it is there, the other run may go.
    _take(tmp_path / "two", tmp_path / "gone", own)


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"seed": 1}, {}, "its seed is 0, here 1"),
        ({"importance": 0.5}, {}, r"its importance is 1\.0, here 0\.5"),
        ({"lora_rank": 4}, {}, "its lora-rank is 8, here 4"),
        ({"curvature_rows": 32}, {}, "its curvature-rows is 64, here 32"),
        ({"method": "olora", "olora_l2": 0.1}, {}, "its olora-l2 is 0.0, here 0.1"),
        ({}, {"base": {"model": "m", "fingerprint": "b1"}}, "its base is b0, here b1"),
        ({}, {"data_fingerprints": {"amazon": "d9"}}, "its data-fingerprint is d0, here d9"),
        (
            {},
            {"data_fingerprints": {"amazon": "d9"}, "train_digests": {"amazon": "t0"}},
            "its data-fingerprint is d0, here d9",
        ),
        ({}, {"processes": 2}, "its processes is 1, here 2"),
        ({}, {"precision": "float32"}, "its precision is bfloat16, here float32"),
    ],
)
def test_another_first_stage_is_refused(
    tmp_path: Path, settings: dict[str, Any], facts: dict[str, Any], words: str
) -> None:
    _finished(tmp_path / "one")
    own = _claimed(tmp_path / "two", FACTS | facts, **settings)
    before = _files(tmp_path / "two")
    with pytest.raises(SettingsError, match=words):
        _take(tmp_path / "two", tmp_path / "one", own)
    assert _files(tmp_path / "two") == before


def test_a_first_stage_depends_on_what_is_learned_and_not_on_what_is_scored(
    tiny_llama: Path, tmp_path: Path
) -> None:
    def learn(name: str, limit: int, limit_test: int, first: Path | None = None) -> dict[str, Any]:
        settings = RunSettings(
            order="demo-topic,demo-mood", model=str(tiny_llama), dtype="float32", max_steps=1,
            limit=limit, limit_test=limit_test, decode="rank", curvature_rows=0,
        )  # fmt: skip
        return run_order(settings, tmp_path / name, first_stage=first)

    learn("few", 8, 4)
    more = learn("more", 8, 6, tmp_path / "few")
    # What was scored on fewer rows is scored anew.
    assert more["row_scores"] == learn("alone", 8, 6)["row_scores"]
    with pytest.raises(SettingsError, match="its train-digest is"):
        learn("others", 9, 6, tmp_path / "few")


def test_a_stage_without_what_is_to_be_protected_is_refused(tmp_path: Path) -> None:
    _finished(tmp_path / "one", method="seqlora")
    (tmp_path / "one/stages/01-amazon/curvature.safetensors").unlink()
    own = _claimed(tmp_path / "two", method="ella")
    with pytest.raises(SettingsError, match="has no curvature"):
        _take(tmp_path / "two", tmp_path / "one", own)
    joint = _claimed(tmp_path / "three", method="joint")
    with pytest.raises(SettingsError, match="one stage, of all tasks"):
        _take(tmp_path / "three", tmp_path / "one", joint)
    assert not has_first_stage(tmp_path / "two")
    assert not has_first_stage(tmp_path / "three")


def test_an_unfinished_run_has_none_to_give(tmp_path: Path) -> None:
    _claimed(tmp_path / "one")
    own = _claimed(tmp_path / "two")
    with pytest.raises(SettingsError, match="no finished first stage 01-amazon"):
        _take(tmp_path / "two", tmp_path / "one", own)


def test_a_stage_that_was_measured_anew_is_not_what_training_would_give(tmp_path: Path) -> None:
    _finished(tmp_path / "a", method="ella")
    stage = tmp_path / "a" / "stages" / "01-amazon"
    manifest = {
        "format": 1,
        "curvature": {"rows": 8, "tokens": 20, "importance": 0.5, "contrast": 0.3},
    }
    (stage / "ella.json").write_text(json.dumps(manifest))
    _measured(stage, importance=1.0)
    own = _claimed(tmp_path / "b", method="ella")
    with pytest.raises(SettingsError, match="was measured anew"):
        _take(tmp_path / "b", tmp_path / "a", own)
    assert not (tmp_path / "b" / "stages").exists()
    _measured(stage, importance=0.5, contrast=0.3)
    _take(tmp_path / "b", tmp_path / "a", own)
    assert (tmp_path / "b" / "stages/01-amazon/curvature.safetensors").is_file()
    # Where training said which it was, any other is another one.
    (digest,) = [read_curvature(read_adapter(stage)).record.digest]  # type: ignore[union-attr]
    manifest["curvature"]["measured"] = digest  # type: ignore[index]
    (stage / "ella.json").write_text(json.dumps(manifest))
    third = _claimed(tmp_path / "d", method="ella")
    _take(tmp_path / "d", tmp_path / "a", third)
    _measured(stage, importance=0.5, contrast=0.3, width=2)
    fourth = _claimed(tmp_path / "e", method="ella")
    with pytest.raises(SettingsError, match="was measured anew"):
        _take(tmp_path / "e", tmp_path / "a", fourth)
    # A method that protects nothing does not ask.
    _measured(stage, importance=0.7)
    none = _claimed(tmp_path / "c", method="inclora", curvature_rows=0)
    _take(tmp_path / "c", tmp_path / "a", none)
