"""How much of a task was learned: the loss of its answers, and of the same to other questions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ella_cli.config import LoraFields
from ella_cli.curvature import importance_of, measure_curvature
from ella_cli.curvature.learned import to_other_questions, total_loss
from ella_cli.errors import NonFiniteError
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.tasks import build_prompt, load_task
from ella_cli.tasks.prompt import Prompt


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return load_base(str(tiny_model), dtype="float32", device="cpu")


def _rows(base: Base, count: int) -> list[dict[str, list[int]]]:
    task = load_task("demo-topic", limit=count)
    encoder = base.encoder(400, 10)
    return [
        encoder.example(build_prompt(task.spec, row, header=False), row.answer)
        for row in task.train
    ]


def _question(base: Base, row: dict[str, list[int]]) -> list[int]:
    ids = row["input_ids"]
    return ids[: -len(row["labels"])] if base.kind == "decoder" else ids


def _loss(base: Base, question: list[int], answer: list[int]) -> float:
    """Of one answer, unbatched and in f64 from the logits on."""
    if base.kind == "decoder":
        ids = torch.tensor([question + answer])
        logits = base.model(input_ids=ids).logits[0, len(question) - 1 : -1]
    else:
        start = base.model.config.decoder_start_token_id
        logits = base.model(
            input_ids=torch.tensor([question]),
            decoder_input_ids=torch.tensor([[start, *answer[:-1]]]),
        ).logits[0]
    chances = logits.double().log_softmax(-1)
    return -float(chances[range(len(answer)), answer].sum())


def test_answers_are_given_to_other_questions(base: Base) -> None:
    rows = _rows(base, 7)
    paired = to_other_questions(base, rows)
    assert [_question(base, row) for row in paired] == [_question(base, row) for row in rows]
    assert [row["labels"] for row in paired] == [row["labels"] for row in [*rows[1:], rows[0]]]
    if base.kind == "decoder":
        assert all(row["input_ids"][-len(row["labels"]) :] == row["labels"] for row in paired)


@torch.no_grad()
def test_losses_are_those_of_each_answer_by_itself(base: Base) -> None:
    model, rows = attach_lora(base, LoraFields(lora_rank=3), seed=0), _rows(base, 7)
    for parameter in base.model.parameters():
        parameter.mul_(4)  # as it is, the answers of a random model hardly depend on anything
    for layer in lora_layers(model).values():
        b, _, _ = lora_pair(layer)
        b.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    base.model.train(False)
    own = math.fsum(_loss(base, _question(base, row), row["labels"]) for row in rows)
    other = math.fsum(
        _loss(base, _question(base, row), rows[(i + 1) % len(rows)]["labels"])
        for i, row in enumerate(rows)
    )
    assert other != pytest.approx(own, rel=1e-3)
    assert total_loss(base, rows, 3) == pytest.approx(own, rel=1e-5)
    told = []
    measured = measure_curvature(
        base, model, rows, rank=4, seed=0, batch_size=3, contrast=True,
        advance=lambda done, words: told.append(done),
    )  # fmt: skip
    assert measured.loss == pytest.approx(own / len(rows), rel=1e-5)
    assert measured.contrast == pytest.approx((other - own) / len(rows), rel=1e-4)
    assert told == [1] * 9


def test_one_row_has_no_other_question_and_counts_in_full(base: Base) -> None:
    model, rows = attach_lora(base, LoraFields(), seed=0), _rows(base, 1)
    measured = measure_curvature(base, model, rows, rank=4, seed=0, contrast=True)
    assert measured.contrast is None
    assert importance_of(measured.loss, measured.contrast) == 1


def test_a_question_has_room_for_any_other_answer(base: Base) -> None:
    base.model.config.max_position_embeddings = 40
    encoder = base.encoder(400, 10)
    question = Prompt("Say it.\n", "long " * 60, "\nAnswer:")
    rows = [encoder.example(question, answer) for answer in ("a", "much longer " * 9)]
    assert len(rows[0]["labels"]) < len(rows[1]["labels"]) == 10
    longest = max(len(row["input_ids"]) for row in to_other_questions(base, rows))
    assert longest == 40


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(
    base: Base, loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ella_cli.curvature.measure.total_loss", lambda *_: loss)
    model, rows = attach_lora(base, LoraFields(), seed=0), _rows(base, 2)
    with pytest.raises(NonFiniteError, match="loss of the measured rows"):
        measure_curvature(base, model, rows, rank=4, seed=0, contrast=True)


@pytest.mark.parametrize(
    ("loss", "contrast", "counts"),
    [
        (math.log(2), 0.0, 0.0625),  # a toss-up between two
        (math.log(3), -0.01, 1 / 81),  # worse than chance is chance
        (1.0, 0.1, 1 - math.exp(-0.2)),
        (0.3, 3.0, 1 - math.exp(-6)),
        (0.01, 0.0, math.exp(-0.04)),  # the same sure answer to everything
        (5.4, 2.0, 1 - math.exp(-4)),  # tokens that cannot be foreseen take nothing away
        (200.0, 0.0, 1e-6),
    ],
)
def test_what_is_known_or_sure_counts(loss: float, contrast: float, counts: float) -> None:
    assert importance_of(loss, contrast) == pytest.approx(counts, rel=1e-9)
