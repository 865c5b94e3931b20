"""What an adapter's model card says of how it was trained and how it is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from ella_cli.config import TrainSettings
from ella_cli.training.card import model_card

MANIFEST: dict[str, Any] = {
    "task": "amazon",
    "method": "ella",
    "lambda": 10.0,
    "energy": "curvature",
    "optim": "adamw-past",
    "order_index": 1,
    "kind": "decoder",
    "scale": 4.0,
    "base": {"model": "org/model"},
    "data": {"train_rows": 320},
    "past": {"tasks": ["dbpedia"]},
    "batch": {"global": 8},
    "steps": 40,
    "curves": {"ce": [0.5]},
    "update_norm": 4.4,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("optim", "named"),
    [("adamw", "AdamW"), ("adamw-past", "AdamW in the past's eigenbasis"), ("muon", "Muon")],
)
def test_it_names_the_optimizer_that_stepped_and_the_terms_beneath(optim: str, named: str) -> None:
    card = model_card(MANIFEST | {"optim": optim}, TrainSettings())
    assert f"| optimizer | {named}, lr" in card
    assert "on top of `org/model` plus the updates of dbpedia" in card
    assert "one term of a sum" in card
    assert card.startswith("---\nbase_model: org/model\n")


@pytest.mark.parametrize("method", ["seqlora", "single", "joint"])
def test_an_adapter_that_is_all_there_is_is_no_term_of_a_sum(method: str) -> None:
    alone = MANIFEST | {"method": method, "past": {"tasks": []}}
    card = model_card(alone, TrainSettings(method=method))  # type: ignore[arg-type]
    assert "base plus this adapter alone" in card
    assert "one term" not in card
    assert ("going on from the adapter of the task before" in card) == (method == "seqlora")


@pytest.mark.parametrize(
    ("base", "known"),
    [("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("/models/a.gguf", None), ("./m", None)],
)
def test_the_hub_is_told_no_path_of_this_machine(base: str, known: str | None) -> None:
    card = model_card(MANIFEST | {"base": {"model": base}}, TrainSettings())
    assert ("base_model:" in card) == (known is not None)
    assert known is None or f"base_model: {known}\n" in card
    # transformers knows neither the wheel's name nor a bare GGUF file.
    assert (f'load_base("{base}")' in card) == (base != "./m")
