"""Small real models, built here and saved as folders, and the `ella` command as a process.

Where there is no GPU, Triton runs in its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import ella_forked, start_server

# Read by Triton when it is imported, which any library may do while tests are collected.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Read when it is imported, too; no test needs the network.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked gpu needs one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("no CUDA device"))


Ella = Callable[..., "subprocess.CompletedProcess[str]"]

_WORDS = (
    "the a cat dog bird ran sat sang on in under mat tree house very good bad neutral happy sad "
    "Option: Answer: What is the topic of following paragraph? Choose one from option. "
    "sentiment red green blue yes no true false"
)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 32 with grouped keys."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, vocabulary = _tokenizer(tmp_path_factory.mktemp("llama"), closes=False)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **_SPECIAL,
    )
    return _saved(LlamaForCausalLM, config, folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer GPT-2, whose Conv1D keeps its weight transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, vocabulary = _tokenizer(tmp_path_factory.mktemp("gpt2"), closes=False)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=512, **_SPECIAL
    )
    return _saved(GPT2LMHeadModel, config, folder)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 with tied embeddings and cross-attention."""
    from transformers import T5Config, T5ForConditionalGeneration

    folder, vocabulary = _tokenizer(tmp_path_factory.mktemp("t5"), closes=True)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        **_SPECIAL,
    )
    return _saved(T5ForConditionalGeneration, config, folder)


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_t5"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each kind of base model in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def _forks() -> None:
    # Before any test has changed the environment for itself.
    start_server()


@pytest.fixture
def ella(tmp_path: Path, _forks: None) -> Ella:
    """Runs `ella ARGUMENTS` as a process of its own, in `tmp_path`.

    With `largest_file`, no file can grow past so many bytes, as on a full disk.
    """

    def call(
        *arguments: object, code: int = 0, largest_file: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        words = [str(one) for one in arguments]
        done = ella_forked(words, tmp_path, _environment(), largest_file)
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


@pytest.fixture
def fresh_ella(tmp_path: Path) -> Ella:
    """The same with nothing loaded before."""

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ella_cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=_environment(),
            check=False,
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return call


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}


_SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def _tokenizer(folder: Path, *, closes: bool) -> tuple[Path, int]:
    """A byte-level BPE over a few words; `closes` ends every text with the end token, like T5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    template = "$A </s>" if closes else "<s> $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("</s>", 1), ("<s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    wrapped.save_pretrained(folder)
    return folder, len(wrapped)


def _saved(model_class: Any, config: Any, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return folder
