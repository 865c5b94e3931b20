"""How much of a task was learned: the loss of its answers, and of the same to other questions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ella_cli.config import LoraFields
from ella_cli.curvature import importance_of, measure_curvature
from ella_cli.curvature.learned import to_other_questions, total_loss
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.tasks import build_prompt, load_task
from ella_cli.tasks.batches import Encoder


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return load_base(str(tiny_model), dtype="float32", device="cpu")


def _rows(base: Base, count: int) -> list[dict[str, list[int]]]:
    task = load_task("demo-topic", limit=count)
    encoder = Encoder(base.tokenizer, base.kind, 400, 10)
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
        base, model, rows, rank=4, seed=0, batch_size=3,
        advance=lambda done, words: told.append(done),
    )  # fmt: skip
    assert measured.loss == pytest.approx(own / len(rows), rel=1e-5)
    assert measured.information == pytest.approx((other - own) / len(rows), rel=1e-4)
    assert told == [1] * 9


def test_one_row_has_no_other_question(base: Base) -> None:
    model, rows = attach_lora(base, LoraFields(), seed=0), _rows(base, 1)
    assert measure_curvature(base, model, rows, rank=4, seed=0).information == 0


@pytest.mark.parametrize(
    ("loss", "information", "counts"),
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
def test_what_is_known_or_sure_counts(loss: float, information: float, counts: float) -> None:
    assert importance_of(loss, information) == pytest.approx(counts, rel=1e-9)


def test_a_gaussian_answer_counts_by_its_share_of_variance() -> None:
    """Where y = x + noise, R² is what it says: of the density, by numbers drawn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for share in (0.1, 0.5, 0.9):
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
        y = share**0.5 * x + (1 - share) ** 0.5 * noise
        given = torch.distributions.Normal(share**0.5 * x, (1 - share) ** 0.5).log_prob(y).mean()
        alone = torch.distributions.Normal(torch.zeros(()).double(), 1.0).log_prob(y).mean()
        found = importance_of(10.0, float(given - alone))
        assert found == pytest.approx(share, abs=0.01)
