"""What the Triton kernels need, compiled for parts this machine lacks; and what that allows there.

    python -m benchmarks.compiled        prints the tables and writes benchmarks/results/compiled.md

Nothing here is run on a device. Registers, spills, shared memory and copies in flight are read
from the compiled code. Bytes and flops are counted. The floors divide them by data-sheet rates;
they say what cannot be beaten, not what is reached.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from ella_cli.files import write_text
from ella_cli.kernels.schedule import (
    LONGEST_ITEM,
    SUM_COLUMNS,
    SUM_SLOTS,
    Blocks,
    blocks_for,
    padded_rank,
)

ROOT = Path(__file__).parents[1]
# How long memory takes to answer under load; assumed, the same for all.
LATENCY_SECONDS = 8e-7
REGISTERS = 65536
MOST_WARPS = 64
# What the system keeps of shared memory for each block.
RESERVED_BYTES = 1024


@dataclass(frozen=True)
class Part:
    """A GPU by its data sheet."""

    name: str
    processors: int
    shared_block: int  # bytes a block may have
    shared_processor: int  # bytes a multiprocessor has
    bytes_per_second: float
    tf32: float  # flops a second, dense
    fp32: float


PARTS = {
    80: Part("A100 80 GB SXM", 108, 163 << 10, 164 << 10, 2.04e12, 1.56e14, 1.95e13),
    90: Part("H100 SXM", 132, 227 << 10, 228 << 10, 3.35e12, 4.94e14, 6.7e13),
    100: Part("B200", 148, 227 << 10, 228 << 10, 8.0e12, 1.1e15, 7.5e13),
}
Job = dict[str, Any]
REDUCTION: Job = {
    "kernel": "reduce",
    "warps": 4,
    "constants": {"BLOCK_S": SUM_SLOTS, "BLOCK_E": SUM_COLUMNS},
}


def job(
    form: str, target: int, rank: int, precision: str, dtypes: tuple[str, str, str]
) -> dict[str, Any]:
    """What `compile_all` takes; dtypes of B, A and W_past."""
    blocks = blocks_for(rank, precision, factored=form == "tiled")
    constants = {
        "FACTORED": form == "tiled",
        "ALIGNED": form == "fused",
        "B_DTYPE": dtypes[0],
        "A_DTYPE": dtypes[1],
        "PAST_DTYPE": dtypes[2],
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.columns,
        "BLOCK_R": blocks.rank,
        "BLOCK_K": blocks.past_rank,
        "SPLIT": blocks.split,
        "PRECISION": precision,
        "STAGES": blocks.stages,
    }
    return {"kernel": "penalty", "target": target, "warps": blocks.warps, "constants": constants}


def compile_all(jobs: Sequence[Job]) -> list[dict[str, int]]:
    """Registers, spills, shared memory and copies of each, from a process in which Triton compiles.

    Raises:
        RuntimeError: a kernel does not compile.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_kernels"],
        input=json.dumps(list(jobs)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"TRITON_DEFAULT_FP_FUSION": "1"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


def blocks_at_once(part: Part, warps: int, need: dict[str, int]) -> int:
    """How many blocks a multiprocessor holds: by registers (given out by eights), memory, warps."""
    registers = 8 * math.ceil(need["registers"] / 8) * 32 * warps
    by_memory = part.shared_processor // (need["shared"] + RESERVED_BYTES)
    return min(REGISTERS // registers, by_memory, MOST_WARPS // warps)


def bytes_an_element(blocks: Blocks, rank: int, item_bytes: int) -> float:
    """Of W_past, and the slots of both gradients, written and read again."""
    return item_bytes + 8 * rank / blocks.columns + 8 * rank / LONGEST_ITEM


def flops_an_element(rank: int) -> int:
    """As issued: three products over the padded rank."""
    return 6 * padded_rank(rank)


def need_lines(jobs: Sequence[tuple[str, Job]], needs: Sequence[dict[str, int]]) -> list[str]:
    lines = [
        "| form, R, W_past, products | part | registers | spilled bytes | shared, KB "
        "| blocks × warps a multiprocessor | in flight, KB | needed in flight, KB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (label, what), need in zip(jobs, needs, strict=True):
        part, constants, warps = PARTS[what["target"]], what["constants"], what["warps"]
        held = blocks_at_once(part, warps, need)
        item_bytes = 2 if constants["PAST_DTYPE"] == "bfloat16" else 4
        block = constants["BLOCK_M"] * constants["BLOCK_N"] * item_bytes
        ahead = constants["STAGES"] - 1 if need["async_copies"] else 0
        wanted = part.bytes_per_second * LATENCY_SECONDS / part.processors
        streamed = f"{held * ahead * block / 1024:.0f} | {wanted / 1024:.0f}"
        lines.append(
            f"| {label} | {part.name} | {need['registers']} | {need['stack'] + need['local']} "
            f"| {need['shared'] / 1024:.0f} | {held} × {warps} "
            f"| {'– | –' if constants['FACTORED'] else streamed} |"
        )
    return lines


def floor_lines(rank: int = 8) -> list[str]:
    """Least milliseconds for q and v of Llama-3.1-8B, by memory and by arithmetic, fused form."""
    elements = 32 * (4096 * 4096 + 1024 * 4096)
    lines = [
        "| part | W_past, products | bytes an element | flops an element | memory, ms "
        "| arithmetic, ms | of copy bandwidth at best |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for part in PARTS.values():
        for label, precision, item_bytes in (("bf16, tf32", "tf32", 2), ("fp32, ieee", "ieee", 4)):
            blocks = blocks_for(rank, precision, factored=False)
            moved = bytes_an_element(blocks, rank, item_bytes)
            flops = flops_an_element(rank)
            memory = elements * moved / part.bytes_per_second
            units = elements * flops / (part.tf32 if precision == "tf32" else part.fp32)
            share = elements * item_bytes / part.bytes_per_second / max(memory, units)
            lines.append(
                f"| {part.name} | {label} | {moved:.2f} | {flops} | {1e3 * memory:.3f} "
                f"| {1e3 * units:.3f} | {share:.0%} |"
            )
    return lines


def main() -> None:
    half, single = ("float32", "float32", "bfloat16"), ("float32",) * 3
    kinds = [
        (f"{form}, {rank}, {past}, {precision}", form, rank, precision, dtypes)
        for form in ("fused", "tiled")
        for rank in (8, 16, 64)
        for past, precision, dtypes in (("bf16", "tf32", half), ("fp32", "ieee", single))
    ]
    jobs = [
        (label, job(form, target, rank, precision, dtypes))
        for label, form, rank, precision, dtypes in kinds
        for target in PARTS
    ]
    needs = compile_all([what for _, what in jobs])
    lines = [
        "# The Triton kernels, compiled",
        "",
        f"Triton {triton.__version__}, ahead of time, for parts that need not be there. "
        "Made by `python -m benchmarks.compiled`; docs/results/h100.md has what an H100 took.",
        "",
        *need_lines(jobs, needs),
        "",
        "In flight: blocks of W_past that asynchronous copies fetch ahead. Needed: bandwidth × "
        f"{LATENCY_SECONDS * 1e9:.0f} ns (assumed), over the multiprocessors.",
        "",
        "Floors for q and v of Llama-3.1-8B, R = 8, fused:",
        "",
        *floor_lines(),
    ]
    write_text(ROOT / "benchmarks/results/compiled.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
