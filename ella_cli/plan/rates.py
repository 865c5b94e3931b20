"""How fast a machine multiplies and moves memory: given, or measured in half a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Wide enough that a product is limited by arithmetic.
_WIDTH = {"cpu": 1024, "cuda": 8192}
_COPY_BYTES = 1 << 27
_SECONDS = 0.25


@dataclass(frozen=True)
class Rates:
    """
    Attributes:
        flops: of matrix products, per second; a multiply-add is two.
        bandwidth: bytes read and written, per second.
        origin: "measured here", or who says so.
    """

    flops: float
    bandwidth: float
    origin: str


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Products of square matrices in `dtype` and copies of 128 MB, a quarter of a second each."""
    width = _WIDTH.get(device.type, 1024)
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))  # (W, W)
    source = torch.zeros(_COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    products = _per_second(lambda: left @ right, device)
    copies = _per_second(lambda: target.copy_(source), device)
    return Rates(products * 2 * width**3, copies * 2 * _COPY_BYTES, "measured here")


def _per_second(work: Callable[[], object], device: torch.device) -> float:
    def done() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    started = done()
    count = 0
    while (passed := done() - started) < _SECONDS:
        work()
        count += 1
    return count / passed
