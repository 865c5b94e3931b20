"""The fused and the tiled form on CUDA: all modules of a model in one launch.

A program takes one item: a strip of BLOCK_N columns of one module, over a range of its rows. It
keeps A's strip and ∂/∂A in registers while W_past comes past in blocks of BLOCK_M rows: read from
memory, each element once (fused), or made on chip from its factors, 2 R_past multiply-adds an
element instead of a read (tiled). Everything that must be summed across items goes to a slot of
its own and is added up, always in the same order, by `reduce_kernel`: equal inputs give equal
bits. The torch twin of both is `fused`.
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
    PAST_RANK,
    PAST_STRIDE_M,
    PAST_STRIDE_N,
    Q_PTR,
    Q_STRIDE_K,
    Q_STRIDE_N,
    RANK,
    block_terms,
    load_matrix,
    store_strip,
)


@triton.jit
def rebuilt_block(
    module,
    o_m,
    o_n,
    m_m,
    m_n,
    PAST_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P Q at these rows and columns, (BLOCK_M, BLOCK_N); P lies where a dense W_past would."""
    p_ptr, q_ptr = tl.load(module + PAST_PTR), tl.load(module + Q_PTR)
    p_stride_m, p_stride_k = tl.load(module + PAST_STRIDE_M), tl.load(module + PAST_STRIDE_N)
    q_stride_k, q_stride_n = tl.load(module + Q_STRIDE_K), tl.load(module + Q_STRIDE_N)
    past_rank = tl.load(module + PAST_RANK)
    w = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, past_rank, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K).to(tl.int64)
        m_k = o_k < past_rank
        m_p = m_m[:, None] & m_k[None, :]
        m_q = m_k[:, None] & m_n[None, :]
        p = load_matrix(p_ptr, p_stride_m, p_stride_k, o_m, o_k, m_p, PAST_DTYPE)
        q = load_matrix(q_ptr, q_stride_k, q_stride_n, o_k, o_n, m_q, PAST_DTYPE)
        w = tl.dot(p, q, w, input_precision=PRECISION)
    return w


@triton.jit
def penalty_kernel(
    modules_ptr,  # (modules, MODULE_FIELDS) int64
    items_ptr,  # (items, ITEM_FIELDS) int64
    workspace_ptr,  # f32: one slot an item for ∂/∂B, ∂/∂A and the loss
    FACTORED: tl.constexpr,  # W_past is P Q: the tiled form
    ALIGNED: tl.constexpr,  # rows of W_past are contiguous and start at multiples of 16 elements
    B_DTYPE: tl.constexpr,
    A_DTYPE: tl.constexpr,
    PAST_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
    a_ptr, b_ptr = tl.load(module + A_PTR), tl.load(module + B_PTR)
    a_stride_r, a_stride_n = tl.load(module + A_STRIDE_R), tl.load(module + A_STRIDE_N)
    a = load_matrix(a_ptr, a_stride_r, a_stride_n, o_r, o_n, m_a, A_DTYPE)  # (BLOCK_R, BLOCK_N)
    da = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    b_stride_m, b_stride_r = tl.load(module + B_STRIDE_M), tl.load(module + B_STRIDE_R)
    db_ptr = workspace_ptr + tl.load(item + DB_SLOT)
    last_row = tl.load(item + LAST_ROW)
    for row in tl.range(tl.load(item + FIRST_ROW), last_row, BLOCK_M, num_stages=STAGES):
        o_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        m_m = o_m < last_row
        m_b = m_m[:, None] & m_r[None, :]
        b = load_matrix(b_ptr, b_stride_m, b_stride_r, o_m, o_r, m_b, B_DTYPE)
        if FACTORED:
            w = rebuilt_block(
                module, o_m, o_n, m_m, m_n, PAST_DTYPE, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
        else:
            m_w = m_m[:, None] & m_n[None, :]
            w = load_matrix(past, past_stride_m, past_stride_n, o_m, o_n, m_w, PAST_DTYPE, ALIGNED)
        db, da_block = block_terms(b, a, w, BLOCK_M, BLOCK_N, BLOCK_R, SPLIT, PRECISION)
        da += da_block
        tl.store(db_ptr + o_m[:, None] * rank + o_r[None, :], db, mask=m_b)
    store_strip(workspace_ptr, item, a, da, o_r, o_n, m_a, columns)
