"""Adds up the slots that the items of `penalty_kernel` have filled.

    out[e] = factor · Σ_slots workspace[slot, e]

in an order that depends on nothing but the shapes. One program takes BLOCK_E neighbouring results
of one module: of its loss (factor s²), of ∂/∂B or of ∂/∂A (factor 2 s²).
"""

from __future__ import annotations

import triton
import triton.language as tl

SOURCE = tl.constexpr(0)
SLOTS = tl.constexpr(1)
SLOT_STRIDE = tl.constexpr(2)
OUT = tl.constexpr(3)
COUNT = tl.constexpr(4)
SUM_FIELDS = tl.constexpr(5)


@triton.jit
def reduce_kernel(
    sums_ptr,  # (sums, SUM_FIELDS) int64
    factors_ptr,  # (sums,) f32
    workspace_ptr,  # f32
    out_ptr,  # f32
    BLOCK_S: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    sum_ = sums_ptr + program * SUM_FIELDS
    source = workspace_ptr + tl.load(sum_ + SOURCE)
    slots, stride = tl.load(sum_ + SLOTS), tl.load(sum_ + SLOT_STRIDE)
    o_e = tl.arange(0, BLOCK_E).to(tl.int64)
    m_e = o_e < tl.load(sum_ + COUNT)
    total = tl.zeros((BLOCK_E,), tl.float32)
    for slot in tl.range(0, slots, BLOCK_S):
        o_s = slot + tl.arange(0, BLOCK_S).to(tl.int64)
        m_s = o_s < slots
        part = tl.load(
            source + o_s[:, None] * stride + o_e[None, :],
            mask=m_s[:, None] & m_e[None, :],
            other=0.0,
        )  # (BLOCK_S, BLOCK_E)
        total += tl.sum(part, axis=0)
    factor = tl.load(factors_ptr + program)
    tl.store(out_ptr + tl.load(sum_ + OUT) + o_e, total * factor, mask=m_e)
