"""An order with T5's real vocabulary, whose tokenizer cuts and closes text as no small one does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def t5_folder(tmp_path: Path) -> Path:
    """A small random T5 with the tokenizer in $ELLA_T5_TOKENIZER."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(os.environ["ELLA_T5_TOKENIZER"])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.skipif(
    "ELLA_T5_TOKENIZER" not in os.environ, reason="ELLA_T5_TOKENIZER names no tokenizer's folder"
)
@pytest.mark.parametrize("decode", ["generate", "rank"])
def test_an_order_with_the_real_tokenizer(
    ella: Any, t5_folder: Path, own_tasks: Path, tmp_path: Path, decode: str
) -> None:
    order = ("--order", "tasks/animals,tasks/colours", "--model", t5_folder, "--decode", decode)
    done = ella("run", *order, "--max-steps", 2, "--dtype", "float32", "-o", "run", "--json")
    results = json.loads(done.stdout)
    assert all(score is not None for row in results["matrix"] for score in row)
    norms = json.loads((tmp_path / "run/stages/02-colours/ella.json").read_text())["update_norms"]
    # q and v of self-attention on both sides, and of the attention across.
    assert len(norms) == 2 * (2 + 2 + 2)
    assert sum("EncDecAttention" in name for name in norms) == 2 * 2
    assert all(norm > 0 for norm in norms.values())
