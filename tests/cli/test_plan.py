"""`ella plan`: from a config alone, up to 70 billion parameters and 100 tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GIVEN = ("--device", "cuda", "--flops", "4e14", "--bandwidth", "3e12")


def test_seventy_billion_and_a_hundred_tasks_from_a_config_alone(ella: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "big")
    flags = ("--model", "big", "--tasks", 100, "--tokens", 256, "--answer-tokens", 8, *GIVEN)
    plan = json.loads(ella("plan", *flags, "--json").stdout)
    assert plan["base_parameters"] == 70_553_706_496
    parts = {part["name"]: part["bytes"] for part in plan["parts"]}
    assert parts["weights"] >= 2 * plan["base_parameters"]
    assert plan["lora_parameters"] == 80 * 8 * (8192 + 8192 + 1024 + 8192)
    files = {past["store"]: past["file"] for past in plan["pasts"]}
    assert files["factored"] == 99 * 4 * plan["lora_parameters"]
    assert files["dense"] == 80 * 4 * (8192 * 8192 + 1024 * 8192)
    assert plan["store"] == "factored"
    assert plan["bytes"] == sum(parts.values())
    # A token's forward and backward through frozen weights is 4 multiply-adds a parameter.
    least = 4 * 8 * 248 * 68e9
    assert least < plan["flops"] < 1.5 * least
    assert plan["step_seconds"] > plan["flops"] / 4e14


def test_it_says_in_words_and_a_table_what_is_needed(ella: Any, tiny_llama: Path) -> None:
    done = ella("plan", "--model", tiny_llama, "--order", "demo", *GIVEN)
    assert "the last of 4 tasks" in " ".join(done.stdout.split())
    for part in ("weights", "LoRA", "optimizer states", "past", "activations", "allocator"):
        assert part in done.stdout
    measured = ella("plan", "--model", tiny_llama, "--order", "demo", "--device", "cpu").stdout
    assert "interpreter and libraries" in measured
    assert "measured here" in measured


def test_a_device_that_is_not_here_needs_its_rates(ella: Any, tiny_llama: Path) -> None:
    done = ella("plan", "--model", tiny_llama, "--device", "cuda:63", code=2)
    assert "--flops" in done.stderr
