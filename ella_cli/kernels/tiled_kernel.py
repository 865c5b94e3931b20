"""The tiled form on CUDA: as `fused_kernel`, with blocks of W_past = P Q made on chip.

W_past is never in memory. A block costs 2 R_past multiply-adds an element instead of a read.
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
def past_block(
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
    """P Q at these rows and columns, (BLOCK_M, BLOCK_N)."""
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
def tiled_kernel(
    modules_ptr,  # (modules, MODULE_FIELDS) int64
    items_ptr,  # (items, ITEM_FIELDS) int64
    workspace_ptr,  # f32: one slot an item for ∂/∂B, ∂/∂A and the loss
    B_DTYPE: tl.constexpr,
    A_DTYPE: tl.constexpr,
    PAST_DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    item = items_ptr + tl.program_id(0).to(tl.int64) * ITEM_FIELDS
    module = modules_ptr + tl.load(item + MODULE) * MODULE_FIELDS
    columns, rank = tl.load(module + COLUMNS), tl.load(module + RANK)
    o_n = tl.load(item + FIRST_COLUMN) + tl.arange(0, BLOCK_N).to(tl.int64)
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
    for row in tl.range(tl.load(item + FIRST_ROW), last_row, BLOCK_M):
        o_m = row + tl.arange(0, BLOCK_M).to(tl.int64)
        m_m = o_m < last_row
        m_b = m_m[:, None] & m_r[None, :]
        b = load_matrix(b_ptr, b_stride_m, b_stride_r, o_m, o_r, m_b, B_DTYPE)
        w = past_block(module, o_m, o_n, m_m, m_n, PAST_DTYPE, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        db, da_block = block_terms(b, a, w, BLOCK_M, BLOCK_N, BLOCK_R, SPLIT, PRECISION)
        da += da_block
        tl.store(db_ptr + o_m[:, None] * rank + o_r[None, :], db, mask=m_b)
    store_strip(workspace_ptr, item, a, da, o_r, o_n, m_a, columns)
