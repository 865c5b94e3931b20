"""How fast and how lean the penalty is: loss and both gradients, every form, beside what peers do.

    python -m benchmarks.penalty                        the small sets, on this machine's device
    python -m benchmarks.penalty --sets t5-large llama-3.1-8b --threads 2

Runs the kernel tests first and times nothing on red. Providers take turns, round by round, so that
all meet the same neighbours on a shared machine. On the CPU the clock is the processor time of one
thread, unless --threads asks for more and so for wall time; on CUDA it is events. Results go to
benchmarks/results/penalty-DEVICE.{csv,json,md} and penalty-auto-DEVICE.svg.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

from ella_cli.files import replacing, write_json, write_text
from ella_cli.kernels import Factors, PenaltyPlan, plan_penalty

RESULTS = Path(__file__).parent / "results"
RANK = 8
SETS: dict[str, list[tuple[int, int]]] = {
    "one-1024": [(1024, 1024)],
    "one-4096": [(4096, 4096)],
    "smollm2-135m": [(576, 576), (192, 576)] * 30,
    "t5-large": [(1024, 1024)] * 144,
    "llama-3.1-8b": [(4096, 4096), (1024, 4096)] * 32,
}
SMALL_SETS = ("one-1024", "one-4096", "smollm2-135m")
PAST_TASKS = (1, 4, 15, 100)

Step = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """One row of the table; times are of one call, loss and both gradients of the whole set."""

    shapes: str
    past_tasks: int
    provider: str
    form: str
    dtype: str
    ms_median: float
    ms_least: float
    past_bytes: int
    peak_extra_bytes: int
    gb_per_second: float
    share_of_copy: float
    times_faster_than_eager: float


@dataclass(frozen=True)
class Bench:
    device: torch.device
    threads: int
    seconds: float

    def once(self, step: Step) -> float:
        """Seconds of one call."""
        if self.device.type == "cuda":
            start, stop = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            start.record()
            step()
            stop.record()
            stop.synchronize()
            return float(start.elapsed_time(stop)) / 1e3
        clock = time.thread_time if self.threads == 1 else time.perf_counter
        begun = clock()
        step()
        return clock() - begun

    def turns(self, steps: dict[str, Step]) -> dict[str, list[float]]:
        """Seconds of each step, in turns; a slow one is stopped after three."""
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()
        for _ in range(100):
            open_ = [
                name for name, spent in times.items() if len(spent) < 3 or sum(spent) < self.seconds
            ]
            if not open_:
                break
            for name in open_:
                times[name].append(self.once(steps[name]))
        return times

    def peak(self, step: Step) -> int:
        """Most bytes a step holds beyond what was there before it."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            step()
            torch.cuda.synchronize(self.device)
            return int(torch.cuda.max_memory_allocated(self.device)) - before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            step()
        events = sorted(
            (event for event in profile.profiler.kineto_results.events() if event.nbytes()),
            key=lambda event: event.start_ns(),
        )
        return max(0, *itertools.accumulate(int(event.nbytes()) for event in events))

    def copy_bytes_per_second(self) -> float:
        """Bytes read and written by a plain copy of 64 MB."""
        source = torch.randn(1 << 24, device=self.device)
        target = torch.empty_like(source)
        times = self.turns({"copy": lambda: target.copy_(source)})["copy"]
        return 2 * source.nbytes / min(times)


@dataclass(frozen=True)
class Modules:
    """A set of modules with their pasts, in factors and (unless too large) dense."""

    bs: list[Tensor]
    as_: list[Tensor]
    factors: list[Factors]
    scales: list[float]

    def dense(self, dtype: torch.dtype) -> list[Tensor]:
        return [past.dense().to(dtype) for past in self.factors]


def make_modules(shapes: Sequence[tuple[int, int]], past_tasks: int, bench: Bench) -> Modules:
    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=bench.device) / 16

    past_rank = RANK * past_tasks
    return Modules(
        [normal(m, RANK).requires_grad_() for m, _ in shapes],
        [normal(RANK, n).requires_grad_() for _, n in shapes],
        [Factors(normal(m, past_rank), normal(past_rank, n)) for m, n in shapes],
        [4.0] * len(shapes),
    )


def total_of(plan: PenaltyPlan, modules: Modules) -> Tensor:
    return plan(modules.bs, modules.as_)[0]


def eager_loss(bs: list[Tensor], as_: list[Tensor], pasts: list[Tensor]) -> Tensor:
    terms = [(4.0 * (b @ a) * w).square().sum() for b, a, w in zip(bs, as_, pasts, strict=True)]
    return torch.stack(terms).sum()


def peft_model(shapes: Sequence[tuple[int, int]], device: torch.device) -> nn.Module:
    bare = nn.ModuleList([nn.Linear(n, m, bias=False, device="meta") for m, n in shapes])
    config = peft.LoraConfig(r=RANK, lora_alpha=4 * RANK, target_modules=r"\d+")
    model = peft.get_peft_model(nn.Sequential(*bare), config)
    return model.to_empty(device=device)


def peft_step(shapes: Sequence[tuple[int, int]], pasts: list[Tensor]) -> Step:
    model = peft_model(shapes, pasts[0].device)
    # The base class declares no get_delta_weight; its layers have one.
    delta_of: list[Callable[[str], Tensor]] = [
        module.get_delta_weight  # type: ignore[misc]
        for module in model.modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.06)

    def step() -> None:
        model.zero_grad()
        deltas: list[Tensor] = [peer("default") for peer in delta_of]
        terms = [(d * w).square().sum() for d, w in zip(deltas, pasts, strict=True)]
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]

    return step


def steps_of(
    modules: Modules, shapes: list[tuple[int, int]], dtype: torch.dtype, *, peers: bool
) -> dict[tuple[str, str], Step]:
    """(provider, form) -> one call, loss and gradients."""
    dense = modules.dense(dtype)
    steps: dict[tuple[str, str], Step] = {}

    def backward(loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            for tensor in (*modules.bs, *modules.as_):
                tensor.grad = None
            loss().backward()  # type: ignore[no-untyped-call]

        return step

    for form in ("fused", "tiled", "gram", "auto"):
        pasts = dense if form == "fused" else modules.factors
        if form == "gram" and modules.factors[0].rank > 15 * RANK:
            # Pair products of 800 columns: slower than all others by far, and larger than W_past.
            continue
        plan = plan_penalty(pasts, modules.scales, rank=RANK, form=form)
        words = f"auto ({'+'.join(sorted(set(plan.forms)))})" if form == "auto" else form
        steps["ours", words] = backward(functools.partial(total_of, plan, modules))
    if not peers:
        return steps
    steps["eager autograd", "dense"] = backward(lambda: eager_loss(modules.bs, modules.as_, dense))
    steps["peft get_delta_weight", "dense"] = peft_step(shapes, dense)
    if len(shapes) == 1:
        compiled = torch.compile(eager_loss)
        steps["torch.compile", "dense"] = backward(lambda: compiled(modules.bs, modules.as_, dense))
    return steps


def measure_set(name: str, past_tasks: int, bench: Bench, copy_speed: float) -> list[Measured]:
    shapes = SETS[name]
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    modules = make_modules(shapes, past_tasks, bench)
    # What peers do does not depend on the number of past tasks.
    steps = steps_of(modules, shapes, dtype, peers=past_tasks == PAST_TASKS[0])
    times = bench.turns({f"{provider}|{form}": step for (provider, form), step in steps.items()})
    dense_bytes = sum(m * n * dtype.itemsize for m, n in shapes)
    factor_bytes = sum(past.p.nbytes + past.q.nbytes for past in modules.factors)
    rows = []
    for (provider, form), step in steps.items():
        spent = times[f"{provider}|{form}"]
        stored = factor_bytes if form in ("tiled", "gram", "auto (gram)") else dense_bytes
        speed = stored / min(spent)
        rows.append(
            Measured(
                name,
                past_tasks,
                provider,
                form,
                str(dtype).removeprefix("torch."),
                1e3 * statistics.median(spent),
                1e3 * min(spent),
                stored,
                bench.peak(step),
                speed / 1e9,
                speed / copy_speed,
                0.0,
            )
        )
    return rows


def with_ratios(rows: list[Measured]) -> list[Measured]:
    eager = {row.shapes: row.ms_median for row in rows if row.provider == "eager autograd"}
    return [replace(row, times_faster_than_eager=eager[row.shapes] / row.ms_median) for row in rows]


def measure_auto(bench: Bench) -> list[dict[str, float | str]]:
    """The time of `auto` over that of the best form, on a grid of M, N, R and past tasks."""
    grid: list[dict[str, float | str]] = []
    shapes, ranks, tasks = [(192, 576), (1024, 1024), (1024, 4096)], [4, 8, 32], [1, 4, 15]
    for (rows, columns), rank, past_tasks in itertools.product(shapes, ranks, tasks):
        b = torch.randn(rows, rank, device=bench.device)
        a = torch.randn(rank, columns, device=bench.device)
        past_rank = rank * past_tasks
        past = Factors(
            torch.randn(rows, past_rank, device=bench.device),
            torch.randn(past_rank, columns, device=bench.device),
        )
        plans = {
            form: plan_penalty([past], [1.0], rank=rank, form=form) for form in ("fused", "tiled")
        }
        if past_rank <= 128:
            plans["gram"] = plan_penalty([past], [1.0], rank=rank, form="gram")
        chosen = plan_penalty([past], [1.0], rank=rank).forms[0]
        times = bench.turns(
            {form: functools.partial(plan, [b], [a]) for form, plan in plans.items()}
        )
        least = {form: min(spent) for form, spent in times.items()}
        grid.append(
            {
                "M": rows,
                "N": columns,
                "R": rank,
                "past_tasks": past_tasks,
                "auto": chosen,
                "best": min(least, key=lambda form: least[form]),
                "auto_over_best": least[chosen] / min(least.values()),
            }
        )
    return grid


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


def write_tables(
    name: str, rows: list[Measured], facts: dict[str, object], grid: list[dict[str, float | str]]
) -> None:
    document = {**facts, "rows": [asdict(row) for row in rows], "auto_grid": grid}
    write_json(RESULTS / f"penalty-{name}.json", document)
    with replacing(RESULTS / f"penalty-{name}.csv") as temporary, temporary.open("w") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    write_text(RESULTS / f"penalty-{name}.md", markdown(rows, facts, grid))


def markdown(
    rows: list[Measured], facts: dict[str, object], grid: list[dict[str, float | str]]
) -> str:
    lines = ["# The penalty: loss and both gradients", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if not isinstance(value, dict)]
    lines += [
        "",
        "| shapes | past tasks | provider | form | ms (median) | ms (least) | peak extra, MB "
        "| GB/s | of copy | × eager |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r.shapes} | {r.past_tasks} | {r.provider} | {r.form} | {r.ms_median:.2f} "
        f"| {r.ms_least:.2f} | {r.peak_extra_bytes / 1e6:.2f} | {r.gb_per_second:.2f} "
        f"| {r.share_of_copy:.0%} | {r.times_faster_than_eager:.1f} |"
        for r in rows
    ]
    if grid:
        worst = max(grid, key=lambda cell: float(cell["auto_over_best"]))
        lines += ["", f"`auto` over the best form, worst of {len(grid)} cells: {worst}"]
    return "\n".join(lines) + "\n"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def facts_of(bench: Bench, copy_speed: float) -> dict[str, object]:
    cuda = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(bench.device) if cuda else _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": bench.threads,
        "clock": "CUDA events"
        if cuda
        else ("processor time of one thread" if bench.threads == 1 else "wall time"),
        "load_average": os.getloadavg()[0],
        "copy_gb_per_second": copy_speed / 1e9,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peft": peft.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SMALL_SETS)
    parser.add_argument("--past-tasks", nargs="+", type=int, default=PAST_TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each provider")
    arguments = parser.parse_args()
    tests = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-m", "not slow"]
    if subprocess.run(tests, cwd=Path(__file__).parents[1], check=False).returncode:
        sys.exit("the kernel tests are red: nothing was timed")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, arguments.threads, arguments.seconds)
    copy_speed = bench.copy_bytes_per_second()
    facts = facts_of(bench, copy_speed)
    rows: list[Measured] = []
    for name, past_tasks in itertools.product(arguments.sets, arguments.past_tasks):
        rows += measure_set(name, past_tasks, bench, copy_speed)
        print(f"{name}, {past_tasks} past tasks: done")
    label = f"{device.type}-{arguments.threads}-threads" if device.type == "cpu" else "cuda"
    grid = measure_auto(bench)
    facts["auto_series"] = plot_auto(bench, RESULTS / f"penalty-auto-{label}.svg")
    rows = with_ratios(rows)
    write_tables(label, rows, facts, grid)
    print(markdown(rows, facts, grid))


if __name__ == "__main__":
    main()
