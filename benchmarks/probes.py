"""Random signs at the logits, or drawn answers; sums kept whole, or thin: what is predicted?

    python -m benchmarks.probes RUN --data DATA [--rows 64] [--seeds 4] [--out FILE]

RUN is a finished `ella run`. The curvature of its first task is measured with each seed, which
draws the rows and the probes: by random signs, as ella does; by drawn answers; and by signs with
the sums of every module kept thin, as those of wide modules are. What the later stages' updates
are predicted to cost, whole and in parts, is compared between the seeds, and thin with whole.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.curvature import steps_of
from ella_cli.adapter import read_adapter
from ella_cli.adapter.curvature_file import read_curvature
from ella_cli.config import MeasureSettings, RunSettings
from ella_cli.files import read_json, write_json
from ella_cli.inspect.curvature import costs
from ella_cli.inspect.run_stages import read_run_stages
from ella_cli.sequence.measure import measure_adapter
from ella_cli.training.manifest import versions


def drawn_answers(chances: Tensor, generator: torch.Generator) -> Tensor:
    """1_y − p: the gradient of a drawn answer's log-likelihood; (tokens, V) f32."""
    answers = torch.multinomial(chances.cpu(), 1, generator=generator).to(chances.device)
    return torch.zeros_like(chances).scatter_(1, answers, 1.0) - chances


VARIANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "signs": nullcontext,
    "drawn": lambda: patch("ella_cli.curvature.measure.fisher_probe", drawn_answers),
    "thin": lambda: patch("ella_cli.curvature.sketch.WIDEST_WHOLE", 0),
}


def predicted(run: Path, settings: MeasureSettings, variant: str) -> list[float]:
    """What the run's later updates are predicted to cost its first task, measured anew."""
    stages = read_run_stages(run)
    first, *later = [one for one in stages.adapters if one is not None]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / first.path.name
        shutil.copytree(first.path, folder)
        with VARIANTS[variant]():
            measure_adapter(folder, stages.order[0], settings)
        curvature = read_curvature(read_adapter(folder))
        assert curvature is not None
        terms = {name: curvature.kronecker(name) for name in curvature.names}
    return [
        math.fsum(costs(step.updates, terms).values())
        for step in steps_of(later, seed=0)
        if step.kind == "real"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/probes.json"))
    given = parser.parse_args()
    trained = RunSettings.model_validate(read_json(given.run / "run.json")["settings"])
    found: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for seed in range(given.seeds):
        settings = MeasureSettings(
            model=trained.model,
            data=given.data,
            limit=trained.limit,
            seed=seed,
            curvature_rows=given.rows,
        )
        for name, all_seeds in found.items():
            all_seeds.append(predicted(given.run, settings, name))
    for name, all_seeds in found.items():
        spreads = [
            statistics.stdev(map(math.log, update)) for update in zip(*all_seeds, strict=True)
        ]
        means = [math.exp(statistics.fmean(map(math.log, one))) for one in all_seeds]
        print(
            f"{name}: deviation of log(predicted) between {given.seeds} seeds, mean of "
            f"{len(spreads)} updates {statistics.fmean(spreads):.3f}; geometric means "
            + ", ".join(f"{mean:.4f}" for mean in means)
        )
    ratios = [
        thin / whole
        for pair in zip(found["thin"], found["signs"], strict=True)
        for thin, whole in zip(*pair, strict=True)
    ]
    print(f"thin / whole: {min(ratios):.4f} to {max(ratios):.4f}, {statistics.median(ratios):.4f}")
    write_json(given.out, {"rows": given.rows, "versions": versions(), "predicted": found})


if __name__ == "__main__":
    main()
