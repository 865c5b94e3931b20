"""AdamW in the past's eigenbasis: the turn, the step in it, and what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import TrainSettings
from ella_cli.errors import SettingsError
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers, lora_pair
from ella_cli.past import Past
from ella_cli.tasks import load_task
from ella_cli.training.assignment import Assignment, optim_in_force
from ella_cli.training.basis import PastBasis, Turned, Turns, leading
from ella_cli.training.task import train_task

SETTINGS = TrainSettings(
    max_steps=6, learning_rate=0.05, lora_rank=2, lora_dropout=0.0, limit=16, curvature_rows=8,
    optim="adamw",
)  # fmt: skip


@pytest.fixture(scope="module")
def first(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("first") / "adapter"
    _trained(tiny_llama, folder, SETTINGS, ())
    return read_adapter(folder)


@pytest.fixture
def past(first: Adapter) -> Past:
    return Past.of([first])


@pytest.fixture
def model(tiny_llama: Path) -> Iterator[PeftModel]:
    model = attach_lora(load_base(str(tiny_llama), dtype="float32", device="cpu"), SETTINGS, seed=0)
    yield model
    detach_lora(model)


def _trained(
    model: Path, folder: Path, settings: TrainSettings, earlier: tuple[Adapter, ...]
) -> dict[str, Tensor]:
    """A and B of every module after a stage of training, f32."""
    base = load_base(str(model), dtype="float32", device="cpu")
    name = ("demo-topic", "demo-mood")[len(earlier)]
    past = Past.of(list(earlier)) if earlier else None
    task = load_task(name, limit=16)
    train_task(base, Assignment(name, [task], len(earlier), past, earlier), settings, folder)
    adapter = read_adapter(folder)
    pairs = {name: adapter.update(name) for name in adapter.names}
    return {f"{name}.{side}": getattr(pairs[name], side) for name in pairs for side in "ab"}


def _whole(basis: PastBasis, parameter: Tensor) -> tuple[Tensor, bool]:
    """Q (D, D) of a parameter, and whether its rows are what it turns."""
    for group in basis.turned:
        for i, one in enumerate(group.parameters):
            if one is parameter:
                eye = torch.eye(one.shape[0 if group.rows else 1])
                turns = group.turns.back(eye.to(one).expand(len(group.parameters), *eye.shape))
                return turns[i], group.rows
    raise AssertionError("a parameter that is not turned")


def test_turns_are_orthogonal_and_begin_with_what_they_were_asked_for() -> None:
    """Three at once, with columns of their own number; one of them is a whole basis."""
    asked = [torch.linalg.qr(torch.randn(9, k, dtype=torch.float64))[0] for k in (3, 9, 1)]
    turns = Turns.together([Turns.onto(columns) for columns in asked])
    eye = torch.eye(9, dtype=torch.float64).expand(3, 9, 9)
    whole = turns.back(eye)  # Q
    assert torch.allclose(whole.mT @ whole, eye, atol=1e-14)
    for q, columns in zip(whole, asked, strict=True):
        ones = torch.ones(columns.shape[1], dtype=torch.float64)
        assert torch.allclose((q[:, : len(ones)] * columns).sum(0).abs(), ones, atol=1e-14)
        # By another route: LAPACK's own product of the reflections, up to signs that it chose too.
        theirs = torch.ormqr(*torch.geqrf(columns), torch.eye(9, dtype=torch.float64))
        assert torch.allclose(q, theirs, atol=1e-13)
    x = torch.randn(3, 9, 2, dtype=torch.float64)
    assert torch.allclose(turns.into(x), whole.mT @ x, atol=1e-14)
    assert torch.allclose(turns.back(turns.into(x)), x, atol=1e-14)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_leading_are_the_eigenvectors_that_hold_the_trace(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(torch.randn(*shape, dtype=torch.float64), full_matrices=False)
    factor = left * torch.tensor([5.0, 3, 2, 1, 1e-3, 1e-4, 0, 0]) @ right
    found = leading(factor)
    assert found.shape == (shape[0], 4)
    assert torch.allclose((found * left[:, :4]).sum(0).abs(), torch.ones(4).double(), atol=1e-10)


def test_of_a_past_that_is_flat_nothing_is_steep() -> None:
    assert leading(torch.zeros(4, 2)).shape[0] == 4
    assert leading(torch.zeros(4, 2)).isfinite().all()
    assert leading(torch.zeros(2, 4)).isfinite().all()


def test_steep_are_the_eigenvectors_of_what_all_past_tasks_depend_on(
    model: PeftModel, past: Past
) -> None:
    basis = PastBasis(model, past)
    for name, layer in lora_layers(model).items():
        b, a, _ = lora_pair(layer)
        outputs, inputs = 0.0, 0.0
        for term in past.curvature(name):
            u, v = term.u.double(), term.v.double()
            outputs = outputs + u @ u.T * (v @ v.T).trace()
            inputs = inputs + v @ v.T * (u @ u.T).trace()
        for parameter, whole in ((b, outputs), (a, inputs)):
            assert isinstance(whole, Tensor)
            q, rows = _whole(basis, parameter)
            assert rows is (parameter is b)
            turned = q.double().T @ whole @ q.double()
            values = torch.linalg.eigvalsh(whole).flip(0)
            steep = int((values.cumsum(0) < 0.999 * values.sum()).sum()) + 1
            diagonal = turned.diagonal()
            assert float(diagonal[:steep].sum()) > 0.998 * float(diagonal.sum())
            # No steep coordinate acts on another, nor on one of the rest.
            beside = turned[:steep] - torch.diag_embed(diagonal)[:steep]
            assert float(beside.abs().max()) < 1e-5 * float(diagonal.max())


def test_a_step_is_adamws_in_other_coordinates(model: PeftModel, past: Past) -> None:
    """Against AdamW on parameters that are turned once, by whole matrices."""
    model.double()
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        torch.nn.init.normal_(one)
    basis = PastBasis(model, past)
    whole = {one: _whole(basis, one) for one in trained}

    def turned(one: Tensor, tensor: Tensor) -> Tensor:
        q, rows = whole[one]
        return q.T @ tensor if rows else tensor @ q

    others = [torch.nn.Parameter(turned(one, one.detach())) for one in trained]
    options: dict[str, float] = {"lr": 0.02, "weight_decay": 0.1}
    theirs = torch.optim.AdamW(others, **options)  # type: ignore[arg-type]
    ours = torch.optim.AdamW(trained, **options)  # type: ignore[arg-type]
    basis.attach(ours)
    for _ in range(4):
        for one, other in zip(trained, others, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = turned(one, one.grad)
        ours.step()
        theirs.step()
    for one, other in zip(trained, others, strict=True):
        assert torch.allclose(turned(one, one.detach()), other.detach(), atol=1e-10)
        assert not torch.allclose(one, other)


def test_steep_directions_no_longer_slow_the_others_down(model: PeftModel, past: Past) -> None:
    """To a goal in the flat of 40 coordinates, beside a penalty of 1e4 on two directions."""
    steep, _ = torch.linalg.qr(torch.randn(40, 2))
    goal = torch.randn(40, 1)
    goal -= steep @ (steep.T @ goal)
    left = {}
    for turned in (False, True):
        weight = torch.nn.Parameter(torch.zeros(40, 1))
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
        if turned:
            basis = PastBasis(model, past)
            turns = Turns.onto(steep.double()).to(weight)
            basis.turned = [Turned((weight,), turns, rows=True)]
            basis.attach(optimizer)
        for _ in range(60):
            optimizer.zero_grad()
            task, penalty = (weight - goal).square().sum(), (steep.T @ weight).square().sum()
            (task + 1e4 * penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        left[turned] = float(task.detach() / goal.square().sum())
    assert left[True] < 0.1
    assert left[False] > 5 * left[True]


def test_a_first_task_is_trained_as_by_adamw(tiny_llama: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"optim": "adamw-past"})
    one = _trained(tiny_llama, tmp_path / "one", settings, ())
    other = _trained(tiny_llama, tmp_path / "other", SETTINGS, ())
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_later_task_is_not(tiny_llama: Path, first: Adapter, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"optim": "adamw-past"})
    one = _trained(tiny_llama, tmp_path / "one", settings, (first,))
    other = _trained(tiny_llama, tmp_path / "other", SETTINGS, (first,))
    assert not any(torch.allclose(one[name], other[name], rtol=1e-3) for name in other)


def test_without_curvature_there_is_nothing_to_turn_into(
    tiny_llama: Path, first: Adapter, tmp_path: Path
) -> None:
    plain = SETTINGS.model_copy(update={"energy": "sum"})
    settings = plain.model_copy(update={"optim": "adamw-past"})
    one = _trained(tiny_llama, tmp_path / "one", settings, (first,))
    other = _trained(tiny_llama, tmp_path / "other", plain, (first,))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_what_has_no_gradient_stays_where_it_is(model: PeftModel, past: Past) -> None:
    trained = [one for one in model.parameters() if one.requires_grad]
    before = [torch.nn.init.normal_(one).detach().clone() for one in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    PastBasis(model, past).attach(optimizer)
    optimizer.step()
    trained[0].grad = torch.ones_like(trained[0])
    optimizer.step()
    assert not torch.allclose(trained[0], before[0], atol=0.01)
    assert all(torch.equal(one, old) for one, old in zip(trained[1:], before[1:], strict=True))


def test_what_another_optimizer_steps_is_left_to_it(model: PeftModel, past: Past) -> None:
    """B by one optimizer and A by another, against both by one."""
    pairs = [lora_pair(layer)[:2] for layer in lora_layers(model).values()]
    both = [one for pair in pairs for one in pair]
    start = [torch.randn_like(one) for one in both]
    gradients = [torch.randn_like(one) for one in both]
    ends = []
    for groups in ([both], [both[::2], both[1::2]]):
        for one, value in zip(both, start, strict=True):
            one.data.copy_(value)
        basis = PastBasis(model, past)
        optimizers = [torch.optim.AdamW(group, lr=0.1) for group in groups]
        for optimizer in optimizers:
            basis.attach(optimizer)
        for one, gradient in zip(both, gradients, strict=True):
            one.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        ends.append([one.detach().clone() for one in both])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_weights_in_half_precision_are_refused(model: PeftModel, past: Past) -> None:
    for one in model.parameters():
        if one.requires_grad:
            one.data = one.data.bfloat16()
    with pytest.raises(SettingsError, match=r"LoRA weights in torch\.bfloat16"):
        PastBasis(model, past)


def test_with_lambda_zero_a_task_is_trained_as_by_inclora(
    tiny_llama: Path, first: Adapter, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"optim": "adamw-past", "lam": 0.0})
    one = _trained(tiny_llama, tmp_path / "one", settings, (first,))
    plain = SETTINGS.model_copy(update={"method": "inclora"})
    other = _trained(tiny_llama, tmp_path / "other", plain, (first,))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({}, "adamw-past"),
        ({"lambda": 3}, "adamw-past"),
        ({"lambda": "5,0"}, "adamw"),
        ({"lambda": 0}, "adamw"),
        ({"energy": "sum"}, "adamw"),
        ({"method": "inclora"}, "adamw"),
        ({"optim": "adamw"}, "adamw"),
        ({"optim": "muon", "energy": "sum"}, "muon"),
    ],
)
def test_the_turn_is_in_force_where_curvature_is_protected(
    past: Past, asked: dict[str, object], steps: str
) -> None:
    settings = TrainSettings.model_validate(asked)
    assert optim_in_force(Assignment("second", [], 1, past), settings) == steps
    first = "muon" if settings.optim == "muon" else "adamw"
    assert optim_in_force(Assignment("first", []), settings) == first
    emptied = Assignment("second", [], 1, Past.of([]))
    assert optim_in_force(emptied, settings.model_copy(update={"energy": "curvature"})) == first
