"""The mixin in front of trainers that are not ours: the penalty keeps exactly its weight there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from trl import SFTConfig, SFTTrainer

from ella_cli.adapter import read_adapter
from ella_cli.model.base import Base, load_base
from ella_cli.past import Past
from ella_cli.penalty import EllaPenalty
from ella_cli.tasks.batches import Collator
from ella_cli.training.mixin import EllaTrainerMixin

LAM = 50.0
# TRL 1.16 sets an argument that transformers 5.24 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")


class EllaSFTTrainer(EllaTrainerMixin, SFTTrainer):  # type: ignore[misc]
    pass


class EllaSeq2SeqTrainer(EllaTrainerMixin, Seq2SeqTrainer):
    pass


def _sft(base: Base, model: Any, one_step: ModuleType, **shape: Any) -> Any:
    texts = [
        {"prompt": f"row {i}: the cat sat", "completion": " on the mat" * (1 + i % 3)}
        for i in range(8)
    ]
    arguments = SFTConfig(bf16=False, max_length=64, **shape)
    return EllaSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(texts),
        processing_class=base.tokenizer,
    )


def _seq2seq(base: Base, model: Any, one_step: ModuleType, **shape: Any) -> Any:
    return EllaSeq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(remove_unused_columns=False, **shape),
        train_dataset=one_step.rows(base),
        data_collator=Collator(0, base.kind, 0),
    )


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("made", "fixture"), [(_sft, "tiny_llama"), (_seq2seq, "tiny_t5")])
def test_the_penalty_has_exactly_its_weight(
    made: Any,
    fixture: str,
    accumulation: int,
    one_step: ModuleType,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = request.getfixturevalue(fixture)
    earlier = one_step.adapted(load_base(str(folder), dtype="float32", device="cpu"), seed=2)
    earlier.save_pretrained(tmp_path / "earlier", save_embedding_layers=False)
    past = Past.of([read_adapter(tmp_path / "earlier")])

    def gradients(lam: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the optimizer sees, and λ · the penalty's own gradients."""
        base = load_base(str(folder), dtype="float32", device="cpu")
        model = one_step.adapted(base, seed=1)
        penalty = EllaPenalty(model, past)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        alone = torch.autograd.grad(lam * penalty(), list(trained.values()))
        trainer = made(
            base,
            model,
            one_step,
            output_dir=str(tmp_path / "unused"),
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            **one_step.ONE_STEP,
        )
        trainer.penalty, trainer.lam = penalty, lam
        kept = one_step.Gradients()
        trainer.add_callback(kept)
        trainer.train()
        return kept.seen, dict(zip(trained, alone, strict=True))

    without, _ = gradients(0.0)
    with_, expected = gradients(LAM)
    assert expected.keys() == with_.keys()
    for name, want in expected.items():
        assert want.norm() > 0
        error = (with_[name] - without[name] - want).norm() / want.norm()
        # The difference of two f32 gradients, of which the penalty is a part.
        assert error < 1e-4, f"{name}: relative error {error:.2e}"
