"""Compiled for real parts on a machine without one: nothing spills, shared memory suffices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.compiled import PARTS, REDUCTION, compile_all, job

pytest.importorskip("triton")


def assert_fits(jobs: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    needs = compile_all(jobs)
    for need, what in zip(needs, jobs, strict=True):
        assert need["stack"] == need["local"] == 0, f"spills: {need} {what}"
        assert need["shared"] <= PARTS[what["target"]].shared_block, f"shared memory: {need} {what}"
    return needs


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
