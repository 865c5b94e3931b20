from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.inspect.singular import decompose, effective_rank, stable_rank
from ella_cli.inspect.spectrum import LEADING, _Sides, spectrum_of
from ella_cli.kernels import Factors
from ella_cli.past import Past, accumulate, read_past
from ella_cli.past.export.dense_copy import export_dense
from tests.inspect.conftest import MODULES, RANK, WriteAdapter, random_factors, updates_of

NAME = next(iter(MODULES))


@pytest.mark.parametrize("store", ["factored", "dense"])
def test_singular_values_are_those_of_the_multiplied_out_sum(
    store: str, summed: dict[str, Tensor], request: pytest.FixtureRequest
) -> None:
    for module in spectrum_of(request.getfixturevalue(store)).modules:
        expected = torch.linalg.svdvals(summed[module.name])[: 3 * RANK]
        assert len(module.singular_values) == 3 * RANK
        assert torch.tensor(module.singular_values).double() == pytest.approx(expected, rel=1e-5)
        entropy = -sum(float(s) * math.log(s) for s in expected / expected.sum())
        assert module.effective_rank == pytest.approx(math.exp(entropy), rel=1e-5)
        assert module.stable_rank == pytest.approx(
            float(expected.square().sum() / expected[0] ** 2), rel=1e-5
        )


def test_the_range_finder_finds_all_of_a_low_rank_matrix_and_measures_what_it_misses() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    q = torch.randn(4, 70, generator=generator, dtype=torch.float64)
    found = decompose(p @ q, rank=4)
    assert found.method == "range finder"
    assert found.values == pytest.approx(torch.linalg.svdvals(p @ q)[:4], rel=1e-10)
    assert found.missed < 1e-12
    # A matrix of higher rank than was said: what is left out is seen.
    noise = torch.randn(90, 70, generator=generator, dtype=torch.float64)
    rough = decompose(p @ q + noise, rank=4)
    rebuilt = rough.left @ torch.diag(rough.values) @ rough.right
    assert rough.missed == pytest.approx(
        float((p @ q + noise - rebuilt).norm() / (p @ q + noise).norm()), rel=1e-9
    )
    assert rough.missed > 0.1


def test_factors_give_the_decomposition_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    factors = Factors(
        torch.randn(9, 3, generator=generator), torch.randn(3, 7, generator=generator)
    )
    found = decompose(factors)
    rebuilt = found.left @ torch.diag(found.values) @ found.right
    assert (rebuilt - factors.p.double() @ factors.q.double()).norm() < 1e-6
    assert found.left.T @ found.left == pytest.approx(torch.eye(3, dtype=torch.float64), abs=1e-12)


def test_ranks_of_known_spectra() -> None:
    assert effective_rank(torch.ones(5, dtype=torch.float64)) == pytest.approx(5)
    assert stable_rank(torch.ones(5, dtype=torch.float64)) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0.0], dtype=torch.float64)) == pytest.approx(1)
    assert effective_rank(torch.zeros(0)) == stable_rank(torch.zeros(3)) == 0.0


def test_task_shares_add_up_to_one_and_are_inner_products_with_the_leading_part(
    factored: Past, summed: dict[str, Tensor]
) -> None:
    report = spectrum_of(factored)
    module = next(m for m in report.modules if m.name == NAME)
    left, values, right = torch.linalg.svd(summed[NAME], full_matrices=False)
    leading = left[:, :LEADING] @ torch.diag(values[:LEADING]) @ right[:LEADING]
    expected = [
        float((updates_of(random_factors(seed))[NAME] * leading).sum() / leading.square().sum())
        for seed in range(3)
    ]
    assert module.task_shares == pytest.approx(expected, rel=1e-5)
    assert sum(report.task_shares) == pytest.approx(1)


def test_principal_angles_are_those_of_the_spaces_that_the_factors_span(factored: Past) -> None:
    report = spectrum_of(factored)
    outputs, inputs = report.overlaps
    shared_out, shared_in, angles = [], [], []
    for name in MODULES:
        (b0, a0), (b1, a1) = random_factors(0)[name], random_factors(1)[name]
        # Projections onto the spaces, not their bases: another route to the cosines.
        out = [b.double() @ torch.linalg.pinv(b.double()) for b in (b0, b1)]
        into = [torch.linalg.pinv(a.double()) @ a.double() for a in (a0, a1)]
        shared_out.append(float((out[0] * out[1]).sum()) / RANK)
        shared_in.append(float((into[0] * into[1]).sum()) / RANK)
        largest = torch.linalg.eigvals(out[0] @ out[1]).real.max()
        angles.append(math.degrees(math.acos(math.sqrt(float(largest)))))
    mean = len(MODULES)
    assert outputs.shared[0][1] == pytest.approx(sum(shared_out) / mean, rel=1e-6)
    assert inputs.shared[0][1] == pytest.approx(sum(shared_in) / mean, rel=1e-6)
    assert outputs.angles[0][1] == pytest.approx(sum(angles) / mean, rel=1e-6)
    assert outputs.shared[0][0] == pytest.approx(1)
    assert outputs.shared[0][1] == pytest.approx(outputs.shared[1][0], rel=1e-12)


def test_random_spaces_share_what_is_called_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = _Sides("outputs", 2)
    for _ in range(300):
        # Of unlike ranks too: the larger space shares more of the smaller.
        sides.add([torch.randn(20, rank, generator=generator) for rank in (RANK, RANK + 2)])
    found = sides.result()
    assert found.shared[0][1] == pytest.approx(found.chance, rel=0.05)


def test_the_chance_level_is_the_mean_over_modules(factored: Past) -> None:
    outputs, inputs = spectrum_of(factored).overlaps
    assert outputs.chance == pytest.approx(sum(RANK / m for m, _ in MODULES.values()) / 4)
    assert inputs.chance == pytest.approx(RANK / 20)


def test_a_dense_past_gives_singular_values_but_no_tasks(dense: Past) -> None:
    report = spectrum_of(dense)
    assert report.modules
    assert not any((report.tasks, report.task_shares, report.overlaps))
    assert "dense" in report.why_no_tasks


def test_a_copy_in_bf16_has_no_more_directions_than_its_tasks(dense: Past, tmp_path: Path) -> None:
    export_dense(dense, tmp_path / "copy", dtype="bfloat16")
    copy = read_past(tmp_path / "copy" / "wpast.safetensors")
    for exact, rounded in zip(spectrum_of(dense).modules, spectrum_of(copy).modules, strict=True):
        assert len(rounded.singular_values) == len(exact.singular_values) == 3 * RANK
        assert rounded.singular_values == pytest.approx(exact.singular_values, rel=0.02)


def test_tasks_keep_their_order(write_adapter: WriteAdapter, tmp_path: Path) -> None:
    path = tmp_path / "past.safetensors"
    accumulate([write_adapter("one", 0), write_adapter("two", 1)], path, store="factored")
    past = read_past(path)
    assert spectrum_of(past).tasks == ("one", "two")
