"""How well `auto` chooses: its time over that of the best form, and over past tasks."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.penalty.bench import Bench
from benchmarks.penalty.providers import RANK, make_modules
from ella_cli.files import replacing
from ella_cli.kernels import Factors, plan_penalty

# Where the Gram form alone would take this many times the flops of the fused one, it is not timed.
_HOPELESS = 30.0

# (M, N) and how many modules of it: one alone, and as many as a model has, which share calls.
SHAPES = (
    ((64, 64), 1),
    ((192, 576), 1),
    ((192, 576), 30),
    ((576, 576), 30),
    ((1024, 1024), 1),
    ((1024, 4096), 1),
    ((4096, 4096), 1),
)
RANKS = (4, 8, 16, 64)
PAST_RANKS = (4, 8, 16, 32, 64, 256)


@dataclass(frozen=True)
class Cell:
    """One point of the grid: which form `auto` takes, which is fastest, and what that costs."""

    modules: int
    M: int
    N: int
    R: int
    R_past: int
    auto: str
    best: str
    auto_over_best: float


def measure_auto(bench: Bench) -> list[Cell]:
    return [
        _cell(bench, shape, modules, rank, past_rank)
        for (shape, modules), rank, past_rank in itertools.product(SHAPES, RANKS, PAST_RANKS)
    ]


def _cell(bench: Bench, shape: tuple[int, int], modules: int, rank: int, past_rank: int) -> Cell:
    rows, columns = shape

    def normal(*size: int) -> list[torch.Tensor]:
        return [torch.randn(*size, device=bench.device) for _ in range(modules)]

    bs, as_ = normal(rows, rank), normal(rank, columns)
    ps, qs = normal(rows, past_rank), normal(past_rank, columns)
    pasts, scales = list(map(Factors, ps, qs)), [1.0] * modules
    chosen = plan_penalty(pasts, scales, rank=rank).forms[0]
    plans = {
        form: plan_penalty(pasts, scales, rank=rank, form=form)
        for form in ("fused", "tiled", "gram")
        if form in (chosen, "fused", "tiled") or not _is_hopeless(rows, columns, rank, past_rank)
    }
    times = bench.turns({form: functools.partial(plan, bs, as_) for form, plan in plans.items()})
    least = {form: min(spent) for form, spent in times.items()}
    best = min(least, key=lambda form: least[form])
    return Cell(modules, *shape, rank, past_rank, chosen, best, least[chosen] / least[best])


def _is_hopeless(rows: int, columns: int, rank: int, past_rank: int) -> bool:
    pairs = math.comb(rank + 1, 2) * math.comb(past_rank + 1, 2)
    return 8 * (rows + columns) * pairs > _HOPELESS * 6 * rank * rows * columns


def plot_auto(bench: Bench, path: Path) -> dict[str, list[float]]:
    """Milliseconds a call against past tasks, 1024 × 1024 at R = 8, written as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    tasks = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100]
    series: dict[str, list[float]] = {form: [] for form in ("gram", "tiled", "fused", "auto")}
    for count in tasks:
        modules = make_modules([(1024, 1024)], count, bench)
        forms = [form for form in series if form != "gram" or count <= 8]
        plans = {
            form: plan_penalty(modules.factors, modules.scales, rank=RANK, form=form)
            for form in forms
        }
        times = bench.turns(
            {form: functools.partial(plan, modules.bs, modules.as_) for form, plan in plans.items()}
        )
        for form in forms:
            series[form].append(1e3 * min(times[form]))
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for form, values in series.items():
        style = {"lw": 3, "color": "black"} if form == "auto" else {"ls": "--"}
        axes.plot(tasks[: len(values)], values, label=form, **style)
    axes.set(xscale="log", yscale="log", xlabel="past tasks", ylabel="ms a call", ylim=(None, 10))
    axes.set_title("1024 × 1024, R = 8: loss and both gradients", fontsize=10)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
    return {"past_tasks": [float(count) for count in tasks], **series}
