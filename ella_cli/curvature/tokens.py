"""Inputs and output gradients of linear layers, token by token, with no weight asking for any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ella_cli.errors import NonFiniteError

Tokens = dict[str, tuple[Tensor, Tensor]]
"""Of each layer: inputs x (S, T, N) and outputs, or gradients there, g (S, T, M)."""


@contextmanager
def watched(layers: Mapping[str, nn.Module]) -> Iterator[Tokens]:
    """Input and output of every layer, filled in by each forward pass within."""
    seen: Tokens = {}

    def forward(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # The first layers' outputs may depend on nothing that is trained.
        if not output.requires_grad:
            output.requires_grad_()
        seen[name] = (inputs[0].detach(), output)

    handles = [
        layer.register_forward_hook(partial(forward, name)) for name, layer in layers.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def token_gradients(logits: Tensor, probe: Tensor, seen: Tokens) -> Tokens:
    """What `probe` becomes at each layer's output, beside the layer's input.

    Args:
        logits: (tokens, V), of a forward pass under `watched`.
        probe: of the same shape.
        seen: what that pass filled in.
    """
    # No parameter's own gradient is asked for, so none is made.
    outputs = [output for _, output in seen.values()]
    gradients = torch.autograd.grad(logits, outputs, grad_outputs=probe)
    return {name: (x, g) for (name, (x, _)), g in zip(seen.items(), gradients, strict=True)}


def not_finite(name: str) -> NonFiniteError:
    """What to say where a layer's inputs or gradients are infinite or NaN."""
    return NonFiniteError(
        f"the curvature of {name} is not finite",
        hint="the model's activations overflow; use --dtype float32 or bfloat16",
    )
