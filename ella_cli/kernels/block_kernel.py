"""What `penalty_kernel` does with one block of W_past, wherever that comes from.

Letters in the kernels: o_ offsets, m_ masks, b_ and a_ loaded blocks of B and A, w_ of W_past.

    u = b a                  (BLOCK_M, BLOCK_N)
    d = u ⊙ w ⊙ w
    ∂/∂B of the block's rows = d aᵀ     summed over column strips afterwards
    ∂/∂A of the strip        += bᵀ d    summed in registers down the rows of an item

A factor of 2 s² is left to the reduction. The loss needs no sum of its own: it is homogeneous of
degree 2 in A, so Σ a ⊙ ∂/∂a is twice the loss.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of the module table; pointers are addresses, strides count elements.
B_PTR = tl.constexpr(0)
B_STRIDE_M = tl.constexpr(1)
B_STRIDE_R = tl.constexpr(2)
A_PTR = tl.constexpr(3)
A_STRIDE_R = tl.constexpr(4)
A_STRIDE_N = tl.constexpr(5)
ROWS = tl.constexpr(6)
COLUMNS = tl.constexpr(7)
RANK = tl.constexpr(8)
PAST_PTR = tl.constexpr(9)
PAST_STRIDE_M = tl.constexpr(10)
PAST_STRIDE_N = tl.constexpr(11)
Q_PTR = tl.constexpr(12)
Q_STRIDE_K = tl.constexpr(13)
Q_STRIDE_N = tl.constexpr(14)
PAST_RANK = tl.constexpr(15)
MODULE_FIELDS = tl.constexpr(16)

# Columns of the item table; slots are offsets into the f32 workspace.
MODULE = tl.constexpr(0)
FIRST_COLUMN = tl.constexpr(1)
FIRST_ROW = tl.constexpr(2)
LAST_ROW = tl.constexpr(3)
DB_SLOT = tl.constexpr(4)
DA_SLOT = tl.constexpr(5)
VALUE_SLOT = tl.constexpr(6)
ITEM_FIELDS = tl.constexpr(7)


@triton.jit
def load_matrix(
    address,
    stride_row,
    stride_column,
    o_row,
    o_column,
    mask,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr = False,  # the address is a multiple of 16 bytes
):
    """A block of a matrix given by its address, in f32; the interpreter's dot needs f32 too."""
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    offsets = o_row[:, None] * stride_row + o_column[None, :] * stride_column
    return tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def block_terms(
    b,
    a,
    w,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block's d aᵀ (BLOCK_M, BLOCK_R) and bᵀ d (BLOCK_R, BLOCK_N).

    d aᵀ is so narrow that every warp would make the whole of it; so its long sum is made in SPLIT
    parts, one a warp, over the columns that warp holds anyway.
    """
    WIDTH: tl.constexpr = BLOCK_N // SPLIT
    d = tl.dot(b, a, input_precision=PRECISION) * w * w
    d_parts = tl.permute(tl.reshape(d, (BLOCK_M, SPLIT, WIDTH)), (1, 0, 2))
    a_parts = tl.reshape(tl.trans(a), (SPLIT, WIDTH, BLOCK_R))
    db = tl.sum(tl.dot(d_parts, a_parts, input_precision=PRECISION), axis=0)
    da = tl.dot(tl.trans(b), d, input_precision=PRECISION)
    return db, da


@triton.jit
def store_strip(workspace_ptr, item, a, da, o_r, o_n, m_a, columns):
    """∂/∂A of an item's strip, and its share of the loss."""
    da_slot = tl.load(item + DA_SLOT)
    tl.store(workspace_ptr + da_slot + o_r[:, None] * columns + o_n[None, :], da, mask=m_a)
    tl.store(workspace_ptr + tl.load(item + VALUE_SLOT), tl.sum(a * da))
