"""The fused form on CUDA: every module's W_past read once, in one launch.

A program takes one item: a strip of BLOCK_N columns of one module, over a range of its rows. It
keeps A's strip and ∂/∂A in registers while W_past streams past it in blocks of BLOCK_M rows.
Everything that must be summed across items goes to a slot of its own and is added up, always in
the same order, by `reduce_kernel`: equal inputs give equal bits. Its torch twin is `fused`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ella_cli.kernels.block_kernel import (
    A_PTR,
    A_STRIDE_N,
    A_STRIDE_R,
    B_PTR,
    B_STRIDE_M,
    B_STRIDE_R,
    COLUMNS,
    DB_SLOT,
    FIRST_COLUMN,
    FIRST_ROW,
    ITEM_FIELDS,
    LAST_ROW,
    MODULE,
    MODULE_FIELDS,
    PAST_PTR,
    PAST_STRIDE_M,
    PAST_STRIDE_N,
    RANK,
    block_terms,
    load_matrix,
    store_strip,
)


@triton.jit
def fused_kernel(
    modules_ptr,  # (modules, MODULE_FIELDS) int64
    items_ptr,  # (items, ITEM_FIELDS) int64
    workspace_ptr,  # f32: one slot an item for ∂/∂B, ∂/∂A and the loss
    B_DTYPE: tl.constexpr,
    A_DTYPE: tl.constexpr,
    PAST_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,  # rows of W_past are contiguous and start at multiples of 16 elements
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    item = items_ptr + tl.program_id(0).to(tl.int64) * ITEM_FIELDS
    module = modules_ptr + tl.load(item + MODULE) * MODULE_FIELDS
    columns, rank = tl.load(module + COLUMNS), tl.load(module + RANK)
    past, past_stride_m = tl.load(module + PAST_PTR), tl.load(module + PAST_STRIDE_M)
    if ALIGNED:
        past_stride_m = tl.multiple_of(past_stride_m, 16)
        columns = tl.multiple_of(columns, 16)
        past_stride_n = 1
    else:
        past_stride_n = tl.load(module + PAST_STRIDE_N)

    first_column = tl.multiple_of(tl.load(item + FIRST_COLUMN), BLOCK_N)
    o_n = first_column + tl.arange(0, BLOCK_N).to(tl.int64)
    o_r = tl.arange(0, BLOCK_R).to(tl.int64)
    m_n, m_r = o_n < columns, o_r < rank
    m_a = m_r[:, None] & m_n[None, :]
    a = load_matrix(
        tl.load(module + A_PTR),
        tl.load(module + A_STRIDE_R),
        tl.load(module + A_STRIDE_N),
        o_r,
        o_n,
        m_a,
        A_DTYPE,
    )  # (BLOCK_R, BLOCK_N)
    da = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    b_ptr = tl.load(module + B_PTR)
    b_stride_m, b_stride_r = tl.load(module + B_STRIDE_M), tl.load(module + B_STRIDE_R)
    db_ptr = workspace_ptr + tl.load(item + DB_SLOT)
    last_row = tl.load(item + LAST_ROW)
    for row in tl.range(tl.load(item + FIRST_ROW), last_row, BLOCK_M, num_stages=STAGES):
        o_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        m_m = o_m < last_row
        m_b = m_m[:, None] & m_r[None, :]
        m_w = m_m[:, None] & m_n[None, :]
        b = load_matrix(b_ptr, b_stride_m, b_stride_r, o_m, o_r, m_b, B_DTYPE)
        w = load_matrix(past, past_stride_m, past_stride_n, o_m, o_n, m_w, PAST_DTYPE, ALIGNED)
        db, da_block = block_terms(b, a, w, BLOCK_M, BLOCK_N, BLOCK_R, SPLIT, PRECISION)
        da += da_block
        tl.store(db_ptr + o_m[:, None] * rank + o_r[None, :], db, mask=m_b)
    store_strip(workspace_ptr, item, a, da, o_r, o_n, m_a, columns)
