"""`ella export` as a process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.past import accumulate, read_past
from tests.conftest import Ella
from tests.past.conftest import MakeAdapter, make_adapter

__all__ = ["make_adapter"]


def test_a_past_becomes_an_adapter_and_matrices(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    past = accumulate([make_adapter("a", 0), make_adapter("b", 1)], tmp_path / "w").past
    done = ella("export", "--past", "w", "--as", "peft", "-o", "exact")
    assert "the sum itself" in done.stdout
    assert read_adapter(tmp_path / "exact").names == past.names

    cut = ella("export", "--past", "w", "--as", "peft", "--max-rank", 2, "-o", "cut", "--json")
    document = json.loads(cut.stdout)
    assert [module["rank"] for module in document["modules"]] == [2, 2, 2]
    assert all(0 < module["relative_error"] < 1 for module in document["modules"])

    ella("export", "--past", "w", "--as", "dense", "-o", "dense")
    assert read_past(tmp_path / "dense" / "wpast.safetensors").store == "dense"


def test_bad_wishes_are_refused_in_two_lines(
    ella: Ella, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    accumulate([make_adapter("a", 0)], tmp_path / "w")
    for arguments, said in (
        (["--as", "dense", "--max-rank", 3], "--max-rank is for --as peft"),
        (["--as", "peft", "--dtype", "bfloat16"], "--dtype is for --as dense"),
        (["--as", "dense", "--model", "org/base"], "--model is for --as peft and merged"),
        # A name read from a file is not looked for on the hub unless the user says so.
        (["--as", "merged"], "the past was made on org/base, which is not here"),
        (
            ["--as", "merged", "--model", "org/base"],
            "org/base is neither a folder here nor in the hub's cache",
        ),
    ):
        failed = ella("export", "--past", "w", *arguments, "-o", "out", code=2)
        assert said in failed.stderr
        assert failed.stderr.count("\n") == 2
        assert not (tmp_path / "out").exists()


def test_a_merged_model_is_written_from_a_local_folder(
    ella: Ella, tiny_llama: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (32, 32)}
    accumulate([make_adapter("a", 0, shapes=shapes)], tmp_path / "w")
    done = ella("export", "--past", "w", "--as", "merged", "--model", tiny_llama, "-o", "merged")
    assert "rounded once" in done.stdout
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_merged_model_is_written_from_the_hubs_cache_with_its_tied_embeddings(
    fresh_ella: Ella,
    make_adapter: MakeAdapter,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    snapshot = tmp_path / "hub/models--org--base/snapshots/abc"
    config = AutoConfig.from_pretrained(tiny_llama)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(snapshot)
    (tmp_path / "hub/models--org--base/refs").mkdir()
    (tmp_path / "hub/models--org--base/refs/main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "model.layers.0.self_attn.q_proj"
    past = accumulate([make_adapter("a", 0, shapes={name: (32, 32)})], tmp_path / "w").past

    fresh_ella("export", "--past", "w", "--as", "merged", "-o", "merged")

    before = AutoModelForCausalLM.from_pretrained(snapshot)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert after.lm_head.weight is after.model.embed_tokens.weight
    for key, weight in after.state_dict().items():
        added = past.delta(name) if key == f"{name}.weight" else 0
        torch.testing.assert_close(weight, before.state_dict()[key] + added)
