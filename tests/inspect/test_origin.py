from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import write_curvature
from ella_cli.adapter.curvature_record import CurvatureRecord
from ella_cli.inspect.origin import Node, adapter_origin, past_origin, run_origin
from ella_cli.inspect.run_stages import past_of_run
from ella_cli.inspect.task_updates import separate_tasks
from ella_cli.kernels import Kronecker
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.record import Energy
from tests.inspect.conftest import WriteAdapter, random_factors, save_adapter

MATRIX = ((0.8, 0.1), (0.7, 0.6))


def chain(node: Node) -> list[str]:
    texts = [node.text]
    while node.below:
        (node,) = node.below
        texts.append(node.text)
    return texts


def test_an_adapter_tells_what_it_must_be_merged_with(write_adapter: WriteAdapter) -> None:
    origin = adapter_origin(write_adapter("yahoo", 2, ("dbpedia", "amazon")))
    text = " ".join(origin.sentences)
    assert "on top of dbpedia, amazon: merge it with their updates" in text
    assert "λ = 100" in text
    assert chain(origin.lineage) == ["tiny", "+ dbpedia", "+ amazon", "+ yahoo (this adapter)"]
    assert origin.missing == ()


def test_a_first_adapter_can_be_used_as_it_is(write_adapter: WriteAdapter) -> None:
    assert "the base alone" in " ".join(adapter_origin(write_adapter("dbpedia")).sentences)


def test_a_foreign_adapter_says_what_is_not_known(tmp_path: Path) -> None:
    origin = adapter_origin(save_adapter(tmp_path / "foreign", random_factors(0)))
    assert "trained elsewhere" in " ".join(origin.sentences)
    assert any(text.startswith("ella.json") for text in origin.missing)


def test_a_past_names_its_tasks_in_order_and_misses_nothing(factored: Past) -> None:
    assert factored.path is not None
    origin = past_origin(factored.path)
    steps = chain(origin.lineage)
    assert [step.split(":")[0] for step in steps] == ["tiny", "+ dbpedia", "+ amazon", "+ yahoo"]
    assert origin.missing == ()
    assert origin.facts["coordinates"] == 2 * (24 * 20 + 12 * 20)


@pytest.mark.parametrize("energy", get_args(Energy))
def test_a_past_of_any_energy_says_which(
    energy: Energy, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    folder = write_adapter("dbpedia")
    adapter = read_adapter(folder)
    terms = {
        name: Kronecker(
            torch.ones(adapter.shape(name)[0], 1), torch.ones(adapter.shape(name)[1], 1)
        )
        for name in adapter.names
    }
    write_curvature(folder, terms, CurvatureRecord(adapter.digest, adapter.task))
    accumulate([folder], tmp_path / "past", energy=energy)
    (text,) = [s for s in past_origin(tmp_path / "past").sentences if s.startswith("its energy is")]
    sign = {"sum": "|Σ", "abs": "Σ |", "rss": "sqrt", "curvature": "answers depend on"}[energy]
    assert sign in text


def test_a_past_notices_adapters_that_are_gone_or_changed(factored: Past, tmp_path: Path) -> None:
    assert factored.path is not None
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(factored.path)
    assert past_origin(link).missing == ()
    shutil.rmtree(tmp_path / "dbpedia")
    save_adapter(tmp_path / "amazon", random_factors(77))
    (tmp_path / "yahoo/adapter_model.safetensors").write_bytes(b"cut")
    missing = " ".join(past_origin(factored.path).missing)
    assert "the adapter of dbpedia is no longer at dbpedia" in missing
    assert "no longer the one that was added as amazon" in missing
    assert "the adapter of yahoo cannot be read any more: " in missing


def test_a_run_tells_what_it_learned_and_what_was_not_run(write_run: Callable[..., Path]) -> None:
    origin = run_origin(write_run("r", MATRIX))
    assert "2 of 2 stages trained, and scored" in origin.sentences
    assert chain(origin.lineage)[1] == "+ task0: learned 0.800, at the end 0.700"
    assert any("base is not scored" in text for text in origin.missing)
    assert any("plasticity" in text for text in origin.missing)


def test_an_unfinished_run_names_the_stages_and_cells_that_are_missing(
    write_run: Callable[..., Path],
) -> None:
    folder = write_run("r", MATRIX)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "stages" / "02-task1")
    (folder / "scores" / "01-task0" / "task1.json").unlink()
    missing = run_origin(folder).missing
    assert "not trained yet: task1" in missing
    assert "01-task0 is not scored on task1" in missing
    assert any("results.json" in text for text in missing)


def test_tasks_trained_alone_stand_side_by_side(write_run: Callable[..., Path]) -> None:
    folder = write_run("alone", ((0.8, None), (None, 0.6)), method="single", lam=0.0)
    for cell in ("01-task0/task1.json", "02-task1/task0.json"):
        (folder / "scores" / cell).unlink()
    origin = run_origin(folder)
    assert [node.text for node in origin.lineage.below] == [
        "+ task0: learned 0.800",
        "+ task1: learned 0.600",
    ]
    assert not any("is not scored on" in text for text in origin.missing)


def test_facts_are_plain_json(write_run: Callable[..., Path], factored: Past) -> None:
    folder = write_run("r", MATRIX)
    for origin in (run_origin(folder), adapter_origin(folder / "stages" / "01-task0")):
        assert json.loads(json.dumps(origin.facts, allow_nan=False))


def test_a_run_tells_its_tasks_apart_though_its_file_holds_only_their_sum(
    write_run: Callable[..., Path],
) -> None:
    folder = write_run("r", MATRIX)
    file = folder / "wpast.safetensors"
    file.unlink()
    accumulate(sorted((folder / "stages").iterdir()), file, store="dense", energy="rss")
    assert separate_tasks(read_past(file)) == ()
    past = past_of_run(folder, file)
    assert separate_tasks(past) == ("task0", "task1")
    assert past.energy == "rss"
    # Not once a stage is no longer the one that was added.
    save_adapter(folder / "stages" / "01-task0", random_factors(77))
    assert separate_tasks(past_of_run(folder, file)) == ()
