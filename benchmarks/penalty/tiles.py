"""Which tiles of the penalty kernel are fastest on this device: each compiled, then timed.

    python -m benchmarks.penalty.tiles [--set llama-3.1-8b] [--ranks 8 32] [--processes 15]

Compiling takes seconds a candidate and no device worth speaking of, so it is done in processes,
which leave their work in Triton's cache. Times are of the two launches alone, by events, queued
behind a pause so that the host's own pace is not in them; the least of four counts. The best are
in `ella_cli.kernels.schedule`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.penalty.__main__ import SETS
from ella_cli.kernels import Factors
from ella_cli.kernels.launch import Launch, group_of
from ella_cli.kernels.operands import Past
from ella_cli.kernels.schedule import SHORTEST_RANK, Blocks, padded_rank

PAST_RANK = 32
_ROWS, _COLUMNS, _WARPS = (16, 32, 64), (32, 64, 128, 256, 512), (2, 4, 8)
Shapes = list[tuple[int, int]]
_PAUSE_CYCLES = 20_000_000  # over 10 ms: more than the host needs to launch


class Kind(NamedTuple):
    """What is compiled in, beside the tiles."""

    form: str
    precision: str
    dtype: torch.dtype
    rank: int


def kinds(ranks: list[int]) -> list[Kind]:
    stored = [("tf32", torch.bfloat16), ("ieee", torch.float32)]
    return [
        Kind(form, *one, rank) for rank in ranks for form in ("fused", "tiled") for one in stored
    ]


def candidates(kind: Kind) -> Iterator[Blocks]:
    rank = padded_rank(kind.rank)
    depths = (1,) if kind.form == "tiled" else (2, 3, 4)
    for rows, columns, warps, stages in product(_ROWS, _COLUMNS, _WARPS, depths):
        # More would not stay in registers.
        fits = rows * columns <= 8192 and columns * rank <= 8192
        if fits and columns // warps >= SHORTEST_RANK:
            yield Blocks(rows, columns, rank, 16, warps, warps, stages)


def operands(shapes: Shapes, kind: Kind) -> tuple[list[Tensor], list[Tensor], list[Past]]:
    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device="cuda") / 16

    factors = [Factors(normal(m, PAST_RANK), normal(PAST_RANK, n)) for m, n in shapes]
    pasts: list[Past] = [
        past.dense().to(kind.dtype)
        if kind.form == "fused"
        else Factors(past.p.to(kind.dtype), past.q.to(kind.dtype))
        for past in factors
    ]
    bs = [normal(m, kind.rank) for m, _ in shapes]
    return bs, [normal(kind.rank, n) for _, n in shapes], pasts


def launch_with(
    blocks: Blocks, kind: Kind, bs: list[Tensor], as_: list[Tensor], pasts: list[Past]
) -> Launch:
    group = group_of(bs[0], as_[0], pasts[0], kind.precision)
    modules = len(pasts)
    return Launch(group, pasts, [kind.rank] * modules, [1.0] * modules, blocks=blocks)


def compile_one(kind: Kind, blocks: Blocks) -> str | None:
    """What kept it from running, if anything."""
    bs, as_, pasts = operands([(256, 4096)], kind)
    try:
        launch_with(blocks, kind, bs, as_, pasts)(bs, as_)
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  whatever Triton or the driver says
        return type(error).__name__
    return None


def milliseconds(one: Launch, bs: list[Tensor], as_: list[Tensor]) -> float:
    one(bs, as_)
    taken = []
    for _ in range(4):
        begun, ended = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        torch.cuda._sleep(_PAUSE_CYCLES)  # type: ignore[no-untyped-call]
        begun.record()
        one(bs, as_)
        ended.record()
        ended.synchronize()
        taken.append(float(begun.elapsed_time(ended)))
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS, default="llama-3.1-8b")
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--processes", type=int, default=8)
    asked = parser.parse_args()
    shapes = SETS[asked.set]
    for kind in kinds(asked.ranks):
        tried = list(candidates(kind))
        with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as processes:
            faults = list(processes.map(partial(compile_one, kind), tried))
        runs = [blocks for blocks, fault in zip(tried, faults, strict=True) if fault is None]
        bs, as_, pasts = operands(shapes, kind)
        found = [
            (milliseconds(launch_with(blocks, kind, bs, as_, pasts), bs, as_), blocks)
            for blocks in runs
        ]
        print(f"{kind}: {len(runs)} of {len(tried)} run")
        for taken, blocks in sorted(found, key=lambda one: one[0])[:5]:
            print(f"  {taken:7.3f} ms  {blocks}", flush=True)


if __name__ == "__main__":
    main()
