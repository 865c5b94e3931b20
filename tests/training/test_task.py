"""A task that cannot be learned leaves its last good adapter and nothing half-written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.config import MeasureSettings, RunSettings, TrainSettings
from ella_cli.errors import ModelError, NonFiniteError, SettingsError
from ella_cli.model.base import load_base
from ella_cli.past import Past
from ella_cli.progress import Silence
from ella_cli.sequence.measure import measure_adapter
from ella_cli.tasks import build_prompt, load_task
from ella_cli.training import task as task_module
from ella_cli.training.assignment import Assignment
from ella_cli.training.checks import tell_cuts
from ella_cli.training.measuring import measure_task
from ella_cli.training.task import encode_rows, train_task


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_adapter(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(learning_rate=1e20, max_steps=20, max_grad_norm=1e20, limit=32)
    task = load_task("demo-topic", limit=32)
    folder = tmp_path / "adapter"
    with pytest.raises(NonFiniteError, match=r"last good adapter is in .*adapter\.last-good"):
        train_task(base, Assignment(task.spec.name, [task]), settings, folder)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.last-good"]
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    kept = PeftModel.from_pretrained(plain, tmp_path / "adapter.last-good")
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())


def test_what_fails_while_measuring_costs_no_training(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_base(str(tiny_llama), dtype="float32", device="cpu")
    # No checkpoint asks the hub what is known of that name.
    base = replace(loaded, source="org/nowhere")
    # The third of three steps is in the middle of an epoch of four.
    settings = TrainSettings(max_steps=3, limit=32, curvature_rows=16)
    task = load_task("demo-topic", limit=32)
    assignment = Assignment(task.spec.name, [task])
    whole = train_task(base, assignment, settings, tmp_path / "whole")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(task_module, "measure_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_task(base, assignment, settings, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    monkeypatch.setattr(task_module, "measure_task", measure_task)
    monkeypatch.setattr(task_module.TaskTrainer, "training_step", interrupted)
    again = train_task(base, assignment, settings, tmp_path / "again")
    assert again["curves"] == whole["curves"]
    for name in ("adapter_model.safetensors", "curvature.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "whole"]


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_layer_that_cannot_be_measured_is_refused_before_training(
    tiny_llama: Path, tmp_path: Path, target: str
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    task = load_task("demo-topic", limit=32)
    settings = TrainSettings(max_steps=2, limit=32, target_modules=("q_proj", target))
    assignment = Assignment(task.spec.name, [task])
    with pytest.raises(ModelError, match=f"{target} is adapted, whose curvature cannot"):
        train_task(base, assignment, settings, tmp_path / "adapter")
    assert not any(tmp_path.iterdir())
    unmeasured = settings.model_copy(update={"curvature_rows": 0})
    train_task(base, assignment, unmeasured, tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"{target} is adapted, whose curvature cannot"):
        measure_adapter(
            tmp_path / "adapter", "demo-topic", MeasureSettings(model=str(tiny_llama), limit=32)
        )


def test_a_layer_that_is_given_all_tokens_in_one_row_is_refused_before_training(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    # Its fc1 and fc2 see (S · T, N).
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(tmp_path / "opt")
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, word_embed_proj_dim=16, max_position_embeddings=512,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    base = load_base(str(tmp_path / "opt"), dtype="float32", device="cpu")
    task = load_task("demo-topic", limit=16)
    assignment = Assignment(task.spec.name, [task])
    settings = TrainSettings(max_steps=1, limit=16, curvature_rows=4, target_modules=("fc1",))
    with pytest.raises(ModelError, match="fc1 is adapted, whose curvature cannot"):
        train_task(base, assignment, settings, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["opt"]
    attention = settings.model_copy(update={"target_modules": ("q_proj",)})
    train_task(base, assignment, attention, tmp_path / "adapter")


def test_no_rows_measure_nothing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leaves nothing to measure"):
        measure_adapter(tmp_path, "demo-topic", MeasureSettings(curvature_rows=0))


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_are_no_numbers_after_the_last_step_are_noticed(
    steps: int, tiny_llama: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    settings = TrainSettings(
        # Past float32's range: the step's own loss was still a number.
        learning_rate=1e39, max_steps=steps, limit=16, curvature_rows=0,
    )  # fmt: skip
    task = load_task("demo-topic", limit=16)
    with pytest.raises(NonFiniteError):
        train_task(base, Assignment(task.spec.name, [task]), settings, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_checkpoint_belongs_to_what_was_trained_before_it(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    task = load_task("demo-topic", limit=8)
    short = TrainSettings(max_steps=1, limit=8, curvature_rows=0, method="seqlora")
    earlier = []
    for seed in range(2):
        own = short.model_copy(update={"seed": seed})
        train_task(base, Assignment(f"e{seed}", [task]), own, tmp_path / f"e{seed}")
        earlier.append(read_adapter(tmp_path / f"e{seed}"))
    first = Assignment("t", [task], 1, earlier=[earlier[0]])
    others = [
        replace(first, earlier=[earlier[1]]), replace(first, order_index=2),
        replace(first, earlier=[]),
    ]  # fmt: skip
    folders = [
        task_module._checkpoint_folder(base, one, short, tmp_path / "t") for one in (first, *others)
    ]
    assert len({*folders}) == 4
    # How a run is scored is no part of how it is trained.
    run = {**short.model_dump(by_alias=True), "per_device_eval_batch_size": 2, "cells": "figures"}
    asked = RunSettings.model_validate(run)
    assert task_module._checkpoint_folder(base, first, asked, tmp_path / "t") == folders[0]
    # Nor is the optimizer's name, where two names are one thing.
    plain = short.model_copy(update={"optim": "adamw"})
    assert task_module._checkpoint_folder(base, first, plain, tmp_path / "t") == folders[0]
    past = Past.of([earlier[0]])
    kept = [
        task_module._checkpoint_folder(
            base,
            replace(first, past=past),
            TrainSettings(energy="curvature", **one),
            tmp_path / "t",
        )
        for one in ({}, {"optim": "adamw"}, {"lam": 0.0}, {"lam": 0.0, "optim": "adamw"})
    ]
    assert kept[0] != kept[1]
    assert kept[2] == kept[3]


def test_any_seed_of_32_bits_trains(tiny_llama: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    task = load_task("demo-topic", limit=8)
    settings = TrainSettings(max_steps=1, limit=8, curvature_rows=0, seed=2**32 - 1)
    manifest = train_task(base, Assignment("t", [task], 3), settings, tmp_path / "t")
    assert manifest["seed"] == 2**32 - 1


class _Told(Silence):
    def __init__(self) -> None:
        self.warned: list[str] = []
        self.noted: list[str] = []

    def warn(self, words: str) -> None:
        self.warned.append(words)

    def note(self, words: str) -> None:
        self.noted.append(words)


def test_answers_and_texts_that_do_not_fit_are_told(tiny_model: Path) -> None:
    base = load_base(str(tiny_model), dtype="float32", device="cpu")
    task = load_task("demo-topic", limit=6)
    lengths = [1, 2, 5, 6, 9, 3]  # words, each at least one token
    rows = [
        replace(row, text="the cat sat " * 10 * (i % 2), answer="mat " * count)
        for i, (row, count) in enumerate(zip(task.train, lengths, strict=True))
    ]
    spec = replace(task.spec, labels=())
    task = replace(task, spec=spec, train=tuple(rows))
    whole = base.encoder(400, 100)
    wanted = [len(whole.answer(row.answer)) for row in rows]
    room, most = sorted(wanted)[2], max(wanted)
    sources = [len(whole.prompt(build_prompt(spec, row, header=False))) for row in rows]

    def told(source: int, target: int) -> _Told:
        settings = TrainSettings(max_source_length=source, max_target_length=target)
        heard = _Told()
        tell_cuts(base, task, encode_rows(base, [task], settings), settings, heard)
        return heard

    fits = told(max(sources) + 1, most)
    assert (fits.warned, fits.noted) == ([], [])
    cut = told(max(sources) - 1, room)
    over = sum(length > room for length in wanted)
    assert cut.warned == [
        f"demo-topic: {over} of 6 answers are learned cut to {room} tokens; "
        f"--max-target-length {most} takes them whole"
    ]
    assert cut.noted == [
        f"demo-topic: {sum(s == max(sources) for s in sources)} of 6 prompts fill their "
        f"{max(sources) - 1} tokens, texts cut where they are longer; see --max-source-length"
    ]
