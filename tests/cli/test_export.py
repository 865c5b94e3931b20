"""`ella export` as a process."""

from __future__ import annotations

import json
from pathlib import Path

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
        (["--as", "merged"], "org/base is not a folder here"),
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
