"""OA and BWT against λ, from results that were kept one by one: the picture of a sweep.

    python -m benchmarks.against_lambda RESULTS.json ... --out NAME.svg

A run whose stages all had one λ stands at that number, whether it was given or found; others stand
at the word it was asked for. Seeds of one λ are averaged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ella_cli.files import read_json
from ella_cli.report import figure
from ella_cli.report.document import Document, Section
from ella_cli.sweep.document import curves
from ella_cli.sweep.outcome import FIGURES, Finished, outcomes
from ella_cli.sweep.points import Point


def finished(path: Path) -> Finished:
    result = read_json(path)
    if not result.get("lambdas"):
        raise SystemExit(f"{path} is no result of `ella run`: it names no λ of its stages")
    # The first task meets no past, so it has no λ of its own.
    used = sorted(set(result["lambdas"][1:]))
    lam = f"{used[0]:g}" if len(used) == 1 else str(result["lambda"])
    figures = {name: result.get(name) for name in FIGURES}
    return Finished(
        Point(lam, result["seed"]), figures, str(path), None, used=tuple(result["lambdas"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="OA and BWT against λ")
    given = parser.parse_args()
    runs = [finished(path) for path in given.results]
    found = outcomes(runs, {}, [run.point for run in runs])
    document = Document(given.title, (Section("λ", tuple(curves(found))),))
    figure.write(document, given.out)


if __name__ == "__main__":
    main()
