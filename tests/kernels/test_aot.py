"""Compiled for real parts on a machine without one: shared memory suffices, little spills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.compiled import PARTS, REDUCTION, compile_all, job
from ella_cli.kernels.launch import PRECISIONS
from ella_cli.kernels.schedule import blocks_for

pytest.importorskip("triton")

# Bytes a thread: over the 136 that a dtype of the tiled form needs for sm_80 with Triton 3.9. Tiles
# that spilled up to 500 with 3.6 were the fastest of their kind on an H100 (docs/results/h100.md).
MOST_SPILLED = 160

# Of `tl.dot`, up to the Triton 3.7 that comes with torch 2.13 for CUDA; 3.9, which is tested here,
# takes 8 as well.
SHORTEST_SUM = 16

# Bytes of shared memory a block may have on parts of compute capability 8.6 and 8.9.
SMALLEST_SHARED = 99 * 1024


def assert_fits(jobs: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    needs = compile_all(jobs)
    for need, what in zip(needs, jobs, strict=True):
        assert max(need["stack"], need["local"]) <= MOST_SPILLED, f"spills: {need} {what}"
        assert need["shared"] <= PARTS[what["target"]].shared_block, f"shared memory: {need} {what}"
    return needs


@pytest.mark.parametrize("rank", [1, 8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factored", [False, True])
def test_no_product_is_shorter_than_older_triton_takes(
    factored: bool, precision: str, rank: int
) -> None:
    blocks = blocks_for(rank, precision, factored=factored)
    sums = (blocks.rank, blocks.columns // blocks.split, blocks.rows, blocks.past_rank)
    assert min(sums) >= SHORTEST_SUM


@pytest.mark.parametrize("target", PARTS)
def test_kernels_of_the_usual_rank_fit_the_part(target: int) -> None:
    half = ("float32", "float32", "bfloat16")
    single = ("float32", "float32", "float32")
    jobs = [
        job("fused", target, 8, "tf32", half),
        job("fused", target, 8, "ieee", single),
        job("tiled", target, 8, "ieee", single),
        REDUCTION | {"target": target},
    ]
    streamed = assert_fits(jobs)
    assert all(need["shared"] <= SMALLEST_SHARED for need in streamed)
    # W_past streams past in whole vectors while the block before it is computed.
    assert streamed[0]["async_copies"] > 0
    assert streamed[1]["async_copies"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("target", PARTS)
def test_every_rank_and_dtype_fits_the_part(target: int, precision: str, rank: int) -> None:
    assert_fits(
        [
            job(kernel, target, rank, precision, (factor, factor, past))
            for kernel in ("fused", "tiled")
            for factor in ("float32", "bfloat16")
            for past in ("float32", "bfloat16")
        ]
    )
