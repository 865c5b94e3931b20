from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ella_cli.adapter import read_adapter
from ella_cli.errors import SettingsError, ShapeError
from ella_cli.inspect.bound import bound_of, bounds_of, module_sums, trained_lambda
from ella_cli.kernels import Factors
from ella_cli.past import Past, accumulate
from ella_cli.report.inspected_update import bound_document
from ella_cli.report.markdown import render
from tests.cli.in_process import ella
from tests.inspect.conftest import (
    MODULES,
    WriteAdapter,
    manifest_of,
    random_factors,
    save_adapter,
    updates_of,
)


@pytest.mark.parametrize("lam", [0.5, 100.0])
def test_measured_sides_are_those_of_the_multiplied_out_matrices(
    lam: float, write_adapter: WriteAdapter, factored: Past, summed: dict[str, Tensor]
) -> None:
    kept, ideal = write_adapter("kept", 7), write_adapter("ideal", 8, lam=0.0)
    report = bounds_of(read_adapter(kept), factored, [lam], read_adapter(ideal))
    x, g = (
        torch.cat([updates_of(random_factors(seed))[n].flatten() for n in MODULES])
        for seed in (7, 8)
    )
    w = torch.cat([summed[n].flatten() for n in MODULES])
    (total,) = report.totals
    assert total.reference == "measured"
    assert total.interference == pytest.approx(float(x @ w), rel=1e-4)
    assert total.right_side == pytest.approx(
        float(g.norm()) / (2 * math.sqrt(lam)) * math.sqrt(w.numel()), rel=1e-6
    )
    shrunk = g / (1 + lam * w**2)
    assert total.shrunk_interference == pytest.approx(float(shrunk @ w), rel=1e-4)
    assert total.agreement == pytest.approx(
        float(x @ shrunk / (x.norm() * shrunk.norm())), abs=1e-6
    )
    assert total.holds == (abs(float(x @ w)) <= total.right_side)
    assert report.failing == sum(not module.holds for module in report.modules)


MATRICES = st.integers(0, 2**31)


@given(MATRICES, st.floats(1e-3, 1e6), st.floats(1e-6, 1e3))
@settings(deadline=None, max_examples=60)
def test_with_the_implied_reference_the_bound_is_an_identity_check_at_any_size(
    seed: int, lam: float, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    update = Factors(
        size * torch.randn(7, 2, generator=generator, dtype=torch.float64),
        torch.randn(2, 5, generator=generator, dtype=torch.float64),
    )
    past = torch.randn(7, 5, generator=generator)
    found = bound_of("m", lam, module_sums(update, past, past, lam, None), measured=False)
    assert found.holds
    assert found.agreement == pytest.approx(1)
    assert found.shrunk_interference == found.interference


def test_the_printed_form_with_the_norm_squared_cannot_hold() -> None:
    w = 0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = 1e-5 * w.sign()
    lam = 100.0
    whole = torch.eye(64, dtype=torch.float64)
    x, reference = Factors(g / (1 + lam * w**2), whole), Factors(g, whole)
    found = bound_of("m", lam, module_sums(x, w, w, lam, reference), measured=True)
    assert found.holds
    assert found.interference > found.right_side * found.reference_norm


def test_the_bound_is_reached_where_every_coordinate_has_the_energy_that_lambda_favours() -> None:
    lam = 25.0
    past = torch.full((4, 3), 1 / math.sqrt(lam))
    reference = Factors(torch.ones(4, 1), torch.ones(1, 3))
    # X = G / (1 + λE²) = G / 2, the worst case.
    kept = Factors(torch.full((4, 1), 0.5), torch.ones(1, 3))
    sums = module_sums(kept, past, past, lam, reference)
    assert bound_of("m", lam, sums, measured=True).tightness == pytest.approx(1, rel=1e-6)


def test_an_energy_above_the_signed_sum_tightens_the_last_factor() -> None:
    past = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    energy = torch.tensor([[2.0, 0.0], [2.0, 4.0]])
    update = Factors(torch.ones(2, 1), torch.ones(1, 2))
    found = bound_of("m", 1.0, module_sums(update, energy, past, 1.0, None), measured=False)
    assert found.support == pytest.approx(math.sqrt(0.5**2 + 1 + 0.25**2))


def test_without_energy_where_the_past_lies_there_is_no_bound() -> None:
    """As with the last K tasks' energy, where only an earlier task moved a coordinate."""
    past = torch.tensor([[1.0, 0.5], [2.0, 0.0]])
    energy = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    update = Factors(torch.ones(2, 1), torch.ones(1, 2))
    found = bound_of("m", 1.0, module_sums(update, energy, past, 1.0, None), measured=False)
    assert (found.right_side, found.holds) == (math.inf, True)
    assert found.reason == "infinite: E is 0 where W_past is not"
    nothing = Factors(torch.zeros(2, 1), torch.ones(1, 2))
    found = bound_of("m", 1.0, module_sums(nothing, energy, past, 1.0, None), measured=False)
    assert (found.right_side, found.holds, found.reason) == (0.0, True, "")


def test_an_infinite_bound_names_the_modules_that_the_update_leaves_alone(tmp_path: Path) -> None:
    shapes = {"model.layers.0.q": (4, 3), "model.layers.0.v": (4, 3)}
    ones = {name: (torch.ones(m, 1), torch.ones(1, n)) for name, (m, n) in shapes.items()}
    still = ones | {"model.layers.0.v": (torch.zeros(4, 1), torch.ones(1, 3))}
    folders = [save_adapter(tmp_path / n, f) for n, f in (("a", ones), ("b", still), ("c", still))]
    # Only the last task counts, and it leaves v alone.
    past = accumulate(folders[:2], tmp_path / "w", energy="sum", last=1).past
    report = bounds_of(read_adapter(folders[2]), past, [1.0, 1.0])
    assert len(report.modules) == 2
    assert len(report.totals) == 1
    shown = render(bound_document(report, "c", "w"))
    assert "infinite: E is 0 where W\\_past is not, in 1 of 2 modules such as" in shown
    assert "model.layers.0.v" in shown


def test_an_infinite_bound_is_said_in_words_and_is_null_in_the_json(
    write_adapter: WriteAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    modules = list(MODULES.items())
    tasks = [
        write_adapter("old", factors=random_factors(1, dict(modules))),
        write_adapter("new", factors=random_factors(2, dict(modules[1:]))),
    ]
    past = tmp_path / "past.safetensors"
    accumulate(tasks, past, energy="abs", last=1)
    words = ("inspect", "bound", str(past), str(write_adapter("kept", 7)), "--lambda")
    assert ella(monkeypatch, *words, "1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The bound is infinite: E is 0 where W_past is not, in 1 of 4 modules" in said
    assert ella(monkeypatch, *words, "1", "--json") == 0
    (total,) = json.loads(capsys.readouterr().out)["totals"]
    assert (total["right_side"], total["reason"][:8]) == (None, "infinite")
    assert ella(monkeypatch, *words, "inf") == 2
    assert "a finite λ above 0, got inf" in capsys.readouterr().err


def test_lambda_comes_from_the_manifest_or_must_be_given(
    write_adapter: WriteAdapter, factored: Past
) -> None:
    assert trained_lambda(read_adapter(write_adapter("kept", 7, lam=100.0))) == (100.0,)
    free = read_adapter(write_adapter("free", 7, lam=0.0))
    assert trained_lambda(free) == ()
    # O-LoRA's λ weighs something else.
    for method, lams in (("olora", ()), ("ella", (0.5,))):
        manifest = manifest_of("kept", lam=0.5, method=method)
        folder = save_adapter(factored.path.parent / method, random_factors(7), manifest)  # type: ignore[union-attr]
        assert trained_lambda(read_adapter(folder)) == lams
    with pytest.raises(SettingsError, match="λ above 0"):
        bounds_of(free, factored, trained_lambda(free))
    with pytest.raises(SettingsError, match="got 0"):
        bounds_of(free, factored, [0.0])


def test_a_reference_that_lacks_a_module_is_refused(
    write_adapter: WriteAdapter, factored: Past
) -> None:
    first = dict([next(iter(MODULES.items()))])
    ideal = write_adapter("ideal", factors=random_factors(8, first))
    with pytest.raises(ShapeError, match="does not adapt"):
        bounds_of(read_adapter(write_adapter("kept", 7)), factored, [1.0], read_adapter(ideal))
    # Nor may it be of another shape.
    wider = random_factors(8, {name: (m, n + 1) for name, (m, n) in MODULES.items()})
    other = read_adapter(write_adapter("wider", factors=wider))
    with pytest.raises(ShapeError, match=r"kept has \(\d+, \d+\) at .*wider has \("):
        bounds_of(read_adapter(write_adapter("kept", 7)), factored, [1.0], other)
