"""Triton's names of the dtypes that factors and pasts come in."""

from __future__ import annotations

import torch
import triton.language as tl

_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    return _TYPES[dtype]
