"""How fast and how lean the penalty is: loss and both gradients, every form, beside what peers do.

    python -m benchmarks.penalty                        the small sets, on this machine's device
    python -m benchmarks.penalty --only-auto            how well auto chooses, printed
    python -m benchmarks.penalty --sets t5-large llama-3.1-8b --threads 2

Runs the kernel tests first and times nothing on red. Providers take turns, round by round, so that
all meet the same neighbours on a shared machine. On the CPU the clock is the processor time of one
thread, unless --threads asks for more and so for wall time; on CUDA it is events. Results go to
benchmarks/results/penalty-DEVICE.{csv,json,md} and penalty-auto-DEVICE.svg.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.penalty.auto import measure_auto, plot_auto
from benchmarks.penalty.bench import Bench, facts_of
from benchmarks.penalty.providers import make_modules, steps_of
from benchmarks.penalty.tables import (
    RESULTS,
    Measured,
    auto_lines,
    markdown,
    with_ratios,
    write_tables,
)

ROOT = Path(__file__).parents[2]
SETS: dict[str, list[tuple[int, int]]] = {
    "one-1024": [(1024, 1024)],
    "one-4096": [(4096, 4096)],
    "smollm2-135m": [(576, 576), (192, 576)] * 30,
    "t5-large": [(1024, 1024)] * 144,
    "llama-3.1-8b": [(4096, 4096), (1024, 4096)] * 32,
}
SMALL_SETS = ("one-1024", "one-4096", "smollm2-135m")
PAST_TASKS = (1, 4, 15, 100)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SMALL_SETS)
    parser.add_argument("--past-tasks", nargs="+", type=int, default=PAST_TASKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each provider")
    parser.add_argument("--only-auto", action="store_true", help="print auto's grid, write nothing")
    arguments = parser.parse_args()
    tests = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-m", "not slow"]
    if subprocess.run(tests, cwd=ROOT, check=False).returncode:
        sys.exit("the kernel tests are red: nothing was timed")
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(device, arguments.threads, arguments.seconds)
    if arguments.only_auto:
        print("\n".join(auto_lines(measure_auto(bench))))
        return
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
