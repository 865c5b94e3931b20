"""Curvature from training to protection, through the `ella` process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

SHORT = ("--max-steps", 3, "--dtype", "float32", "--learning-rate", "0.01")


def _train(ella: Any, model: Path, task: str, out: str, *more: object, **how: Any) -> Any:
    return ella("train", "--task", f"tasks/{task}", "-o", out, "--model", model, *SHORT, "--json",
                *more, **how)  # fmt: skip


def test_a_second_task_is_held_off_what_the_first_depends_on(
    ella: Any, tiny_t5: Path, own_tasks: Path, tmp_path: Path
) -> None:
    first = json.loads(_train(ella, tiny_t5, "animals", "a1").stdout)
    assert first["curvature"]["importance"] == 1
    assert first["curvature"]["rows"] == 24
    assert 0 <= first["curvature"]["largest_dropped_share"]["g"] < 1
    assert (tmp_path / "a1" / "curvature.safetensors").is_file()
    ella("accumulate", "a1", "--past", "w", "--energy", "curvature")

    norms, costs = [], []
    for lam in (1, 1e9):
        out = f"a2-{lam:g}"
        second = json.loads(
            _train(ella, tiny_t5, "colours", out, "--past", "w", "--lambda", lam).stdout
        )
        norms.append(second["update_norm"])
        costs.append(second["curves"]["penalty"][-1])
    # The paper's energy in the same file, one flag away.
    plain = json.loads(
        _train(ella, tiny_t5, "colours", "a3", "--past", "w", "--energy", "sum").stdout
    )
    # Three steps, and the last one's cost is noted before it: without a hold both would be equal.
    assert costs[1] < costs[0] / 4
    assert norms[1] < norms[0]
    assert plain["curves"]["penalty"][-1] != costs[0]


def _cost(tensors: dict[str, torch.Tensor], seed: int) -> float:
    """‖s‖² of a random update of all modules: what directions of whatever sign say of it."""
    generator = torch.Generator().manual_seed(seed)
    moves: torch.Tensor | float = 0.0
    for key in sorted(tensors):
        if key.endswith(".R"):
            u, v = (tensors[key[:-1] + letter].float() for letter in "UV")
            update = torch.randn(len(u), len(v), generator=generator)
            _, rows, columns = tensors[key].shape
            seen = u[:, :rows].T @ update @ v[:, :columns]
            moves = moves + torch.einsum("dkl,kl->d", tensors[key].float(), seen)
    assert isinstance(moves, torch.Tensor)
    return float(moves.square().sum())


def test_what_is_measured_later_equals_what_training_measured(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    _train(ella, tiny_llama, "animals", "a1", "--importance", "auto")
    ella("accumulate", "a1", "--past", "w")
    _train(ella, tiny_llama, "colours", "a2", "--past", "w")
    for name, task, seed, more in (
        ("a1", "animals", 0, ("--importance", "auto")),
        ("a2", "colours", 1, ("--past", "w", "--importance", 0.5)),
    ):
        path = tmp_path / name / "curvature.safetensors"
        at_the_end = load_file(path)
        path.unlink()
        own = ("--dtype", "float32", *more)
        done = ella("measure", name, "--task", f"tasks/{task}", *own, "--json")
        facts = json.loads(done.stdout)
        trained = json.loads((path.parent / "ella.json").read_text())["curvature"]
        if "auto" in more:
            assert facts["contrast"] == pytest.approx(trained["contrast"], abs=1e-3)
            assert facts["importance"] == pytest.approx(trained["importance"], abs=1e-3)
        else:
            assert (trained["importance"], trained["contrast"]) == (1, None)
            assert (facts["importance"], facts["contrast"]) == (0.5, None)
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["ella_curvature"])
        assert record["importance"] == facts["importance"]
        # That of its stage, from the seed it was trained with.
        assert record["seed"] == seed
        later = load_file(path)
        assert later.keys() == at_the_end.keys()
        for key, factor in later.items():
            # Columns are eigenvectors, of either sign.
            if not key.endswith(".R"):
                one, other = factor.float(), at_the_end[key].float()
                torch.testing.assert_close(one @ one.T, other @ other.T, rtol=0.05, atol=1e-3)
        for seed in range(5):
            assert _cost(later, seed) == pytest.approx(_cost(at_the_end, seed), rel=0.05)
    assert "its curvature was added" not in ella("accumulate", "a2", "--past", "w").stderr


def test_what_cannot_protect_is_said(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    _train(ella, tiny_llama, "animals", "a1", "--curvature-rows", 0)
    assert not (tmp_path / "a1" / "curvature.safetensors").exists()
    ella("accumulate", "a1", "--past", "w")
    refused = _train(
        ella, tiny_llama, "colours", "a2", "--past", "w", "--energy", "curvature", code=2
    )
    assert "no task of w has a curvature" in refused.stderr
    assert "ella measure" in refused.stderr
    refused = _train(ella, tiny_llama, "colours", "a2", "--past", "w", "--energy", "rss", code=2)
    assert "w has the energy sum, not rss" in refused.stderr
    assert not (tmp_path / "a2").exists()
    refused = ella("measure", "a1", "--task", "tasks/animal", code=2)
    assert "tasks/animal" in refused.stderr


def test_an_adapter_is_measured_on_what_it_was_trained_on(
    ella: Any, tiny_llama: Path, own_tasks: Path, tmp_path: Path
) -> None:
    _train(ella, tiny_llama, "animals", "a1", "--curvature-rows", 0)
    ella("accumulate", "a1", "--past", "w")
    own = ("--header", "--max-source-length", 80, "--limit", 9)
    _train(ella, tiny_llama, "colours", "a2", "--past", "w", "--curvature-rows", 0, *own)
    ella("accumulate", "a2", "--past", "v")
    for more, said in (
        (("--task", "tasks/animals", "--past", "w"), "a2 has learnt colours, not animals"),
        (("--task", "tasks/colours"), "a2 was trained on top of animals"),
        (("--task", "tasks/colours", "--past", "v"), "v holds no task beneath colours"),
    ):
        refused = ella("measure", "a2", *more, code=2)
        assert said in refused.stderr.replace("\n", " ")
    assert not (tmp_path / "a2" / "curvature.safetensors").exists()

    def measured(*more: object) -> tuple[str, str]:
        known = ("--dtype", "float32", "--past", "w", *more)
        done = ella("measure", "a2", "--task", "tasks/colours", *known)
        with safe_open(tmp_path / "a2" / "curvature.safetensors", "pt") as file:
            record = json.loads(file.metadata()["ella_curvature"])
        assert record["rows"] == (8 if "--limit" in more else 9)
        return record["digest"], done.stderr

    as_trained, words = measured()
    assert measured(*own[:3]) == (as_trained, words)
    assert "other rows" not in words
    other, words = measured("--limit", 8)
    assert other != as_trained
    assert "these are other rows than the adapter was trained on" in words.replace("\n", " ")
    assert "is not what" not in words
    # The task beneath has the right name, and was learned otherwise.
    _train(ella, tiny_llama, "animals", "b1", "--curvature-rows", 0, "--seed", 3)
    ella("accumulate", "b1", "--past", "u")
    done = ella("measure", "a2", "--task", "tasks/colours", "--past", "u")
    assert "u is not what colours was trained on" in done.stderr.replace("\n", " ")


def test_a_run_protects_by_curvature(ella: Any, tiny_llama: Path, own_tasks: Path) -> None:
    flags = ("--order", "tasks/animals,tasks/colours", "--model", tiny_llama, "--decode", "rank")
    how = ("--energy", "curvature", "--importance", "auto", "--lambda", 1)
    done = ella("run", *flags, *SHORT, *how, "-o", "r", "--json")
    # Three steps of a random model teach nothing.
    assert "animals was hardly learned" in done.stderr.replace("\n", " ")
    results = json.loads(done.stdout)
    assert results["energy"] == "curvature"
    stage = json.loads((own_tasks.parent / "r/stages/02-colours/ella.json").read_text())
    assert stage["curves"]["penalty"][-1] > 0
