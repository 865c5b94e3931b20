"""Compiled for real parts on a machine without one: nothing spills, shared memory suffices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ella_cli.kernels.schedule import SUM_COLUMNS, SUM_SLOTS, blocks_for

pytest.importorskip("triton")

# Bytes of shared memory a block may have, by compute capability.
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
ROOT = Path(__file__).parents[2]


def job(
    kernel: str, target: int, rank: int, precision: str, dtypes: tuple[str, str, str]
) -> dict[str, Any]:
    blocks = blocks_for(rank, precision, factored=kernel == "tiled")
    constants: dict[str, Any] = {
        "B_DTYPE": dtypes[0],
        "A_DTYPE": dtypes[1],
        "PAST_DTYPE": dtypes[2],
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.columns,
        "BLOCK_R": blocks.rank,
        "SPLIT": blocks.split,
        "PRECISION": precision,
        "FACTORED": kernel == "tiled",
        "ALIGNED": kernel == "fused",
        "BLOCK_K": blocks.past_rank,
        "STAGES": blocks.stages,
    }
    return {"kernel": kernel, "target": target, "warps": blocks.warps, "constants": constants}


def compile_all(jobs: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """In a process of its own, in which Triton compiles rather than interprets."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_DEFAULT_FP_FUSION": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))],
        input=json.dumps(list(jobs)),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


def assert_fits(jobs: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    needs = compile_all(jobs)
    for need, what in zip(needs, jobs, strict=True):
        assert need["stack"] == need["local"] == 0, f"spills: {need} {what}"
        assert need["shared"] <= SHARED_BYTES[what["target"]], f"shared memory: {need} {what}"
    return needs


@pytest.mark.parametrize("target", SHARED_BYTES)
def test_kernels_of_the_usual_rank_fit_the_part(target: int) -> None:
    half = ("float32", "float32", "bfloat16")
    single = ("float32", "float32", "float32")
    jobs = [
        job("fused", target, 8, "tf32", half),
        job("fused", target, 8, "ieee", single),
        job("tiled", target, 8, "ieee", single),
        {
            "kernel": "reduce",
            "target": target,
            "warps": 4,
            "constants": {"BLOCK_S": SUM_SLOTS, "BLOCK_E": SUM_COLUMNS},
        },
    ]
    streamed = assert_fits(jobs)
    # W_past streams past in whole vectors while the block before it is computed.
    assert streamed[0]["async_copies"] > 0
    assert streamed[1]["async_copies"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_every_rank_and_dtype_fits_the_part(target: int, precision: str, rank: int) -> None:
    assert_fits(
        [
            job(kernel, target, rank, precision, (factor, factor, past))
            for kernel in ("fused", "tiled")
            for factor in ("float32", "bfloat16")
            for past in ("float32", "bfloat16")
        ]
    )
