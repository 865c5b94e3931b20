"""A task's curvature against gradients of the weights, example by example, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ella_cli.config import LoraFields
from ella_cli.curvature import (
    DIRECTIONS,
    INPUT_COLUMNS,
    MOST_DIRECTIONS,
    OUTPUT_COLUMNS,
    SHRINKAGE,
    basis_columns,
    directions_of,
    measure_curvature,
    sketch,
)
from ella_cli.curvature.directions import Together
from ella_cli.curvature.estimate import fisher_probe
from ella_cli.kernels import Kronecker
from ella_cli.model.base import Base, load_base
from ella_cli.model.lora import attach_lora, lora_layers, lora_pair
from ella_cli.tasks import build_prompt, load_task
from ella_cli.tasks.batches import IGNORED, Collator, Encoder

Rows = list[dict[str, list[int]]]


@pytest.fixture
def base(tiny_model: Path) -> Base:
    return load_base(str(tiny_model), dtype="float32", device="cpu")


def _rows(base: Base, count: int) -> Rows:
    task = load_task("demo-topic", limit=count)
    encoder = Encoder(base.tokenizer, base.kind, 400, 10)
    rows = [
        encoder.example(build_prompt(task.spec, row, header=False), row.answer)
        for row in task.train
    ]
    return sorted(rows, key=lambda row: len(row["input_ids"]))


def _with_trained_lora(base: Base) -> nn.Module:
    model = attach_lora(base, LoraFields(lora_rank=3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            b, _, _ = lora_pair(layer)
            b.copy_(0.1 * torch.randn(b.shape, generator=generator))
    return model


def _gradients(
    base: Base, model: nn.Module, rows: Rows, generator: torch.Generator, batch_size: int
) -> list[dict[str, Tensor]]:
    """∂⟨probe, logits⟩ / ∂W of each row, (M, N) f64 by module: by autograd."""
    layers = lora_layers(model)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    for weight in weights.values():
        weight.requires_grad_()
    pad = base.tokenizer.pad_token_id
    assert isinstance(pad, int)
    start = getattr(base.model.config, "decoder_start_token_id", None)
    collate = Collator(pad, base.kind, start if start is not None else pad)
    turned = base.model.config.model_type == "gpt2"  # Conv1D keeps (in, out)
    model.train(False)
    found = []
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        batch = collate(some)
        labels = batch.pop("labels").flatten()
        batch.pop("shift_labels", None)
        logits = base.model(**batch).logits.float().flatten(0, -2)[labels != IGNORED]
        probed = (logits * fisher_probe(logits.detach().softmax(-1), generator)).sum(-1)
        for one in probed.split([len(row["labels"]) for row in some]):
            grads = torch.autograd.grad(one.sum(), list(weights.values()), retain_graph=True)
            found.append(
                {
                    name: (g.T if turned else g).double()
                    for name, g in zip(weights, grads, strict=True)
                }
            )
    for weight in weights.values():
        weight.requires_grad_(False)
    return found


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_factors_are_those_of_each_rows_gradient(base: Base, batch_size: int) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 5)
    assert len({len(row["input_ids"]) for row in rows}) > 1  # so that batches are padded
    gradients = _gradients(base, model, rows, torch.Generator().manual_seed(3), batch_size)
    measured = measure_curvature(base, model, rows, rank=10_000, seed=3, batch_size=batch_size)
    assert measured.rows == 5
    assert set(measured.modules) == set(gradients[0])

    for name, kronecker in measured.modules.items():
        each = torch.stack([one[name] for one in gradients])  # (rows, M, N)
        square = float(each.square().sum())
        assert measured.held[name] > 0
        g = torch.einsum("smn,skn->mk", each, each) / measured.tokens
        c = torch.einsum("smn,smk->nk", each, each) / square
        u, v = kronecker.u.double(), kronecker.v.double()
        for factor, floor, whole in ((u, kronecker.u_floor, g), (v, kronecker.v_floor, c)):
            even = SHRINKAGE * whole.trace() / len(whole) * torch.eye(len(whole))
            shrunk = (1 - SHRINKAGE) * whole + even
            found = factor @ factor.T + floor * torch.eye(len(whole))
            assert torch.allclose(found, shrunk, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_directions_are_what_all_modules_do_together(base: Base) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 5)
    measured = measure_curvature(base, model, rows, rank=10_000, seed=3, batch_size=5)
    # The same draws: one probe for the factors, then one of the second look.
    generator = torch.Generator().manual_seed(3)
    _gradients(base, model, rows, generator, 5)
    gradients = _gradients(base, model, rows, generator, 5)
    updates = {
        name: torch.randn(one.shape, generator=generator).double()
        for name, one in measured.modules.items()
    }
    wanted = torch.zeros(len(gradients), dtype=torch.float64)
    found = 0.0
    for name, one in measured.modules.items():
        assert one.directions is not None
        _, rows, columns = one.directions.shape
        u, v = one.u[:, :rows].double(), one.v[:, :columns].double()
        moved = u.T @ updates[name] @ v
        found = found + torch.einsum("dkl,kl->d", one.directions.double(), moved)
        # What the leading columns have no part of is left out.
        u, v = u / u.norm(dim=0), v / v.norm(dim=0)
        inside = u @ (u.T @ updates[name] @ v) @ v.T
        wanted += torch.stack([(each[name] * inside).sum() for each in gradients])
    # Five examples, all of whose directions are kept.
    assert float(found.square().sum()) == pytest.approx(
        float(wanted.square().sum()) / measured.tokens, rel=1e-3
    )


def _square(term: Kronecker) -> float:
    """‖·‖²_F of the module's part of all directions, with orthogonal columns."""
    assert term.directions is not None
    _, rows, columns = term.directions.shape
    u, v = term.u[:, :rows].norm(dim=0), term.v[:, :columns].norm(dim=0)
    return float((term.directions * u[:, None] * v).square().sum())


def test_few_directions_hold_what_matters_most(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 8)

    # In one and the same basis, whatever their number.
    monkeypatch.setattr("ella_cli.curvature.directions.basis_columns", lambda numbers: (4, 4))

    def square(count: int) -> float:
        monkeypatch.setattr("ella_cli.curvature.directions.MOST_DIRECTIONS", count)
        modules = measure_curvature(base, model, rows, rank=6, seed=3).modules.values()
        return sum(_square(one) for one in modules if one.directions is not None)

    few, more, whole = square(2), square(4), square(16)
    assert few < more < whole
    # More than an even share of them.
    assert few > whole / 4


def test_as_many_directions_are_kept_as_rows_were_looked_at(base: Base) -> None:
    model = _with_trained_lora(base)
    for count in (1, 3, 8):
        modules = measure_curvature(base, model, _rows(base, count), rank=6, seed=3).modules
        assert {len(one.directions) for one in modules.values()} == {count}  # type: ignore[arg-type]


def test_past_a_usual_number_there_are_as_many_directions_as_have_room() -> None:
    # SmolLM2's q and v, 64 columns each: no column is given up for more of them.
    numbers, basis = 64 * (2 * 576 + 192 + 576), 2 * OUTPUT_COLUMNS * INPUT_COLUMNS
    counts = [directions_of(rows, numbers, basis) for rows in (1, 64, 100, 120, 500)]
    assert counts == [1, 64, 100, 120, 120]
    # A wide model has room for all that are worth a product.
    assert directions_of(500, 100 * numbers, basis) == MOST_DIRECTIONS
    # A narrow one keeps what it has by default.
    assert directions_of(500, numbers // 10, basis) == DIRECTIONS


def test_of_many_rows_no_more_is_held_than_of_few(base: Base) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 4)
    modules = measure_curvature(base, model, rows, rank=6, seed=3).modules
    shapes = {name: one.shape for name, one in modules.items()}
    together = Together(modules, 4000)
    drawn = torch.Generator().manual_seed(0)
    strongest = {
        name: (
            torch.randn(m, generator=drawn, dtype=torch.float64),
            torch.randn(n, generator=drawn, dtype=torch.float64),
        )
        for name, (m, n) in shapes.items()
    }
    for _ in range(40):
        # One number an example, the same in every module: one direction of them all.
        along = torch.randn(100, 1, 1, generator=drawn)
        together.add(
            {
                name: (
                    (x + 0.1 * torch.randn(100, 1, len(x), generator=drawn)).float(),
                    (g * along).float(),
                )
                for name, (g, x) in strongest.items()
            }
        )
        assert sum(map(len, together._seen)) < 4 * MOST_DIRECTIONS
    joined, _ = together.joined(4000)
    squares = torch.zeros(together._count)
    for one in joined.values():
        assert one.directions is not None
        _, of_u, of_v = one.directions.shape
        u, v = one.u[:, :of_u].norm(dim=0), one.v[:, :of_v].norm(dim=0)
        squares += (one.directions * u[:, None] * v).square().sum(dim=(1, 2))
    assert squares[0] > squares[1:].sum()


def test_directions_take_no_more_room_than_the_factors() -> None:
    before = (0, 0)
    for numbers in (1, 60, 500, 5_000, 20_000, 49_152, 1_000_000):
        rows, columns = basis_columns(numbers)
        assert DIRECTIONS * rows * columns <= max(numbers, DIRECTIONS)
        assert before[0] <= rows <= OUTPUT_COLUMNS
        assert before[1] <= columns <= INPUT_COLUMNS
        before = rows, columns
    # v of SmolLM2: 64 columns of 192 and of 576.
    assert basis_columns(64 * (192 + 576)) == (OUTPUT_COLUMNS, INPUT_COLUMNS)


def test_wide_modules_are_measured_alike(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 5)
    whole = measure_curvature(base, model, rows, rank=6, seed=3)
    monkeypatch.setattr(sketch, "WIDEST_WHOLE", 8)
    monkeypatch.setattr(sketch, "COLUMNS", 24)
    thin = measure_curvature(base, model, rows, rank=6, seed=3)
    for name, one in whole.modules.items():
        other = thin.modules[name]
        assert other.shape == one.shape
        assert other.trace == pytest.approx(one.trace, rel=1e-4)
        for factor, again in ((one.u, other.u), (one.v, other.v)):
            if len(factor) <= 24:
                assert torch.allclose(factor.abs(), again.abs(), rtol=1e-3, atol=1e-5)
                continue
            # Never more than the best six directions hold, and most of it: these spectra are flat.
            held, most = float(again.square().sum()), float(factor.square().sum())
            assert 0.8 * most < held < most


def test_the_model_is_left_as_it_was(base: Base) -> None:
    model, rows = _with_trained_lora(base), _rows(base, 2)
    base.model.train()
    measure_curvature(base, model, rows, rank=4, seed=0)
    assert base.model.training
    assert not any(module._forward_hooks for module in lora_layers(model).values())
    assert all(parameter.grad is None for parameter in base.model.parameters())
