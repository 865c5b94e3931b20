"""Which of torch's attention kernels a model attends through."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# A training step of SmolLM2 in bf16 on a CPU takes 0.72, 0.77 and 0.92 of the time with plain
# products at 40, 72 and 128 tokens; at 160 the two are close, at 300 it takes 1.2 times as long
# (benchmarks/short_attention.py).
_PLAIN_UP_TO = 128


def leave_cudnn_attention() -> None:
    """Lets CUDA attend through the other kernels, for the whole process.

    With a mask, and so with any padding, cuDNN's gradient is NaN at some lengths (pytorch#196678);
    13 of the first 44 runs on an H100 ended so (docs/results/h100.md).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def short_attention(ids: Tensor) -> AbstractContextManager[None]:
    """What a pass over `ids` runs in: plain products where they are the faster ones.

    On a CPU the backward pass of flash attention is slow, its forward pass is not.

    Args:
        ids: tokens of a batch, (S, T), on the model's device.
    """
    if torch.is_grad_enabled() and trains_plainly(ids.device.type, ids.shape[-1]):
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def trains_plainly(device: str, tokens: int) -> bool:
    """Whether a training step over so many tokens attends by plain products."""
    return device == "cpu" and tokens <= _PLAIN_UP_TO
