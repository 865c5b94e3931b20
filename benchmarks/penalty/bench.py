"""Times steps in turns, on one device, and says what else there is to know of it."""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch

Step = Callable[[], object]


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


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
