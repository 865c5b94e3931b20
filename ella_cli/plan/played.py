"""One training step, played through on the meta device.

Meta tensors have shapes and lifetimes but no data. So forward and backward of the real model run
in seconds whatever its size, and the bytes that live at each moment, the multiply-adds and the
bytes read and written are counted rather than guessed.
"""

from __future__ import annotations

import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

from ella_cli.model.attention import trains_plainly
from ella_cli.model.source import model_errors
from ella_cli.plan.operations import OperationCounter
from ella_cli.plan.skeleton import Skeleton

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _grouped_flop(a: Tensor, b: Tensor, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Of the experts' products, each token through those it was sent to: a (T, K), b (E, K, N).

    In the backward pass both are matrices, and T, of all experts, is what is summed over.
    """
    return 2 * a.shape[-2] * a.shape[-1] * b.shape[-1]


_FLOPS = {
    **flop_registry,
    _FLASH: sdpa_flop,
    _FLASH_BACKWARD: sdpa_backward_flop,
    torch.ops.aten._grouped_mm: _grouped_flop,
}


@dataclass(frozen=True)
class Batch:
    """S sequences: of `tokens` prompt and answer together, of `answers` answer tokens each.

    A decoder reads both in one sequence; an encoder-decoder reads tokens - answers and writes
    answers.
    """

    sequences: int
    tokens: int
    answers: int


@dataclass(frozen=True)
class PlayedStep:
    """One micro-batch.

    Attributes:
        activations: bytes alive at the peak beyond weights, LoRA pairs and their gradients.
        flops: of all matrix products, forward and backward; a multiply-add is two.
        traffic: bytes that all operations read and write.
        operations: what the host calls or launches, views aside.
    """

    activations: int
    flops: int
    traffic: int
    operations: int


def play_step(skeleton: Skeleton, batch: Batch, *, device: str = "cpu") -> PlayedStep:
    """Forward, cross-entropy over the answers, backward, as on a device of that type."""
    model = skeleton.model
    known = [*model.parameters(), *model.buffers()]
    counter = _Counter(known)
    labels = _ids(batch.sequences, batch.answers)  # (S, answers)
    inputs = _inputs(skeleton, batch, labels)
    fused = not trains_plainly(device, inputs["input_ids"].shape[-1])
    stumbling = model_errors(
        "the model's step cannot be played through without its weights",
        hint="run a few steps with `ella train --max-steps 3` and watch them instead",
    )
    with stumbling, _FusedAttention(device) if fused else nullcontext(), counter:
        outputs = model(**inputs)
        logits = outputs.logits.float().flatten(0, 1)  # (S · answers, V)
        loss = functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        del outputs, logits
        loss.backward()  # type: ignore[no-untyped-call]
    # Gradients stay alive at the end and are counted on their own.
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    activations = max(0, counter.peak - gradients)
    return PlayedStep(activations, counter.flops, counter.traffic, counter.operations)


def _inputs(skeleton: Skeleton, batch: Batch, labels: Tensor) -> dict[str, Any]:
    size = batch.sequences
    if skeleton.kind == "encoder-decoder":
        length = max(1, batch.tokens - batch.answers)
        # With four dimensions a mask is taken as it is; making one would look at its values.
        mask = torch.ones(size, 1, 1, length, dtype=torch.bool, device="meta")
        ids = _ids(size, length)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": labels}
    shape = (size, 1, batch.tokens, batch.tokens)
    return {
        "input_ids": _ids(size, batch.tokens),
        "attention_mask": torch.ones(shape, dtype=torch.bool, device="meta"),
        "position_ids": _ids(size, batch.tokens),
        "logits_to_keep": batch.answers,
        "use_cache": False,
    }


def _ids(rows: int, columns: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.long, device="meta")


class _FusedAttention(TorchFunctionMode):
    """Attention as devices compute it: never the (L, L) matrix, as the meta device's fallback."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        if self._device == "cpu" and kwargs.get("dropout_p"):
            # The CPU's fused kernel knows no dropout (torch 2.13); the fallback is what runs.
            return func(*args, **kwargs)
        query, key, value = args[:3]
        mask = kwargs.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            additive = torch.zeros_like(mask, dtype=query.dtype)
            mask = additive.masked_fill_(mask.logical_not(), -math.inf)
        out = _FLASH(query, key, value, 0.0, mask is None, attn_mask=mask)
        return out[0]


class _Counter(OperationCounter):  # type: ignore[no-untyped-call]
    """Bytes of the storages that live, their peak, the bytes that pass, flops and operations."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.peak = self.traffic = self.flops = self._alive = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if (count := _FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        made = [t for t in tree_iter(out) if isinstance(t, Tensor)]
        if not func.is_view:
            read = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
            self.traffic += sum(t.nbytes for t in (*read, *made))
        for tensor in made:
            self._born(tensor.untyped_storage())
        return out

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._alive += storage.nbytes()
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._alive -= self._sizes.pop(key)
