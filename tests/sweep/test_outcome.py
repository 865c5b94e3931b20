"""Mean ± deviation over seeds, the best λ, and what seeds cannot tell apart."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ella_cli.report import figure, svg
from ella_cli.report.document import bars
from ella_cli.sweep.document import curves, outcome_table, sweep_document, verdict
from ella_cli.sweep.outcome import Finished, Outcome, best, outcomes, rivals
from ella_cli.sweep.points import Point

SCORES = {
    "0": (0.50, 0.52),
    "1000": (0.60, 0.64),
    "100000": (0.61, 0.61),
    "auto": (0.40, 0.42),
}
POINTS = [Point(lam, seed) for lam in reversed(SCORES) for seed in (0, 1)]


def _found(**failed: str) -> list[Outcome]:
    runs = [
        Finished(point, {"oa": oa, "bwt": oa - 0.7, "forgetting": 0.1, "learned": None}, "", "f")
        for point in POINTS
        if f"{point.lam}-{point.seed}" not in failed
        for oa in [SCORES[point.lam][point.seed]]
    ]
    reasons = {Point(*key.split("-")).name: why for key, why in failed.items()}  # type: ignore[arg-type]
    return outcomes(runs, reasons, POINTS)


def test_each_lambda_has_its_mean_and_deviation() -> None:
    found = _found()
    assert [one.lam for one in found] == ["0", "1000", "100000", "auto"]
    oa = found[1].spreads["oa"]
    assert oa is not None
    assert oa.mean == pytest.approx(0.62)
    assert oa.deviation == pytest.approx(0.02 * 2**0.5)
    assert found[1].spreads["learned"] is None
    assert outcome_table(found).rows[1][:3] == ("1000", 2, "0.620 ± 0.028")


def test_the_best_is_named_with_those_within_its_deviation() -> None:
    found = _found()
    winner = best(found)
    assert winner is not None
    assert winner.lam == "1000"
    assert rivals(found, winner) == ["100000"]
    (words,) = verdict(found)
    assert "λ = 1000" in words.text
    assert "within one deviation of it: 100000" in words.text


def test_a_failed_seed_is_said_and_left_out_of_the_mean() -> None:
    found = _found(**{"1000-1": "the loss became nan"})
    assert found[1].seeds == (0,)
    assert found[1].failed == ("the loss became nan",)
    assert verdict(found)[-1].warning
    assert outcomes([], {}, POINTS)[0].spreads["oa"] is None
    assert best(outcomes([], {}, POINTS)) is None


def test_what_some_seeds_diverged_at_is_not_the_best() -> None:
    # Seed 1 alone has the highest mean of all.
    found = _found(**{"1000-0": "the loss became nan"})
    winner = best(found)
    assert winner is not None
    assert winner.lam == "100000"
    assert "1000" not in (rivals(found, winner) or [])
    assert any("λ = 1000 has a higher mean, of 1 seeds" in one.text for one in verdict(found))


def test_one_seed_tells_nothing_apart() -> None:
    found = _found(**{f"{lam}-1": "" for lam in SCORES})
    winner = best(found)
    assert winner is not None
    assert rivals(found, winner) is None
    assert "one seed says nothing" in verdict(found)[0].text


def test_the_plot_has_every_lambda_in_its_place_with_its_bar(tmp_path: Path) -> None:
    found = _found()
    oa, bwt = curves(found)
    assert oa.x_ticks == ((2.0, "0"), (3.0, "1000"), (5.0, "100000"), (6.0, "auto"))
    assert oa.series[0].y == pytest.approx((0.51, 0.62, 0.61, 0.41))
    assert bars(bwt.series[0])[1] == pytest.approx((3.0, -0.08 - 0.0283, -0.08 + 0.0283), abs=1e-3)
    drawn = ElementTree.fromstring(svg.line_chart(bwt))
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    assert {"0", "1000", "100000", "auto"} <= set(texts)
    lines = [e.get("d", "") for e in drawn.iter() if e.get("class") == "curve"]
    # The curve, its key in the legend, and a bar for each λ.
    assert sum("V" in line for line in lines) == 4
    document = sweep_document("sweep", found)
    for name in ("s.svg", "s.png"):
        figure.write(document, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
