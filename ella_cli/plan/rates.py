"""How fast a machine multiplies, moves memory and calls: given, or measured in a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ella_cli.plan.operations import OperationCounter

# Seconds an operation, where it is not measured: what SmolLM2's steps took on an H100's host, all
# of whose time went into calling (docs/results/tool.md). Others are several times as fast.
_ASSUMED_CALL = 4e-5
# What PEFT's layers and the model's own Python take beside bare modules: 7.7 µs an operation of a
# 260k-parameter Llama with LoRA where these take 5.2, one thread of an EPYC.
_AROUND_MODULES = 1.5

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
        call: seconds of the host for an operation, whatever its size.
    """

    flops: float
    bandwidth: float
    origin: str
    call: float = _ASSUMED_CALL


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Products of square matrices in `dtype`, copies of 128 MB, and steps of a tiny network."""
    width = _WIDTH.get(device.type, 1024)
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))  # (W, W)
    source = torch.zeros(_COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    products = _per_second(lambda: left @ right, device)
    copies = _per_second(lambda: target.copy_(source), device)
    call = _AROUND_MODULES * _seconds_a_call(device)
    return Rates(products * 2 * width**3, copies * 2 * _COPY_BYTES, "measured here", call)


def _seconds_a_call(device: torch.device) -> float:
    """Forward and backward of modules so small that calling is all they cost."""
    layers = [
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, device=device) for _ in range(8)
    ]
    network = nn.Sequential(*layers)
    x = torch.ones(1, 8, 16, device=device)

    def step() -> None:
        network(x).sum().backward()

    step()
    counter = OperationCounter()
    with counter:
        step()
    steps = _per_second(step, device)
    return 1 / (steps * counter.operations)


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
