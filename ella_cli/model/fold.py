"""The past inside the frozen weights: W0 + W_past, always from the pristine W0.

bf16 weights are made as bf16(W0 + W_past) from the fp32 sum. Adding task after task into bf16
weights would round once a task; so the pristine W0 of the touched modules is kept (for q
and v 27 MB of SmolLM2, 1.3 GB of an 8B model), and every fold starts from it.

Where adding to the weights would not do, the past is a frozen branch beside the module: a quantised
base has none to add to, and a weight that several modules share (embeddings and the head of many
models) would carry the past of one into the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType

import torch
from torch import Tensor, nn

from ella_cli.errors import ModelError, ShapeError

Deltas = Callable[[str], Tensor]  # module name -> W_past, (M, N) f32


class Fold:
    """The modules of one model that carry a past, and the means to change which past it is.

    Used as a context manager it leaves the model as it found it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._pristine: dict[str, Tensor] = {}
        self._branches: list[torch.utils.hooks.RemovableHandle] = []
        weights = [getattr(module, "weight", None) for module in model.modules()]
        users = Counter(id(weight) for weight in weights if weight is not None)
        self._shared = {weight for weight, count in users.items() if count > 1}

    def set(self, names: Iterable[str], delta: Deltas) -> None:
        """Makes the model W0 + delta on the modules `names`, and W0 elsewhere.

        Raises:
            ModelError: the model has no such module, or it has no weight to adapt.
            ShapeError: a delta does not have its module's shape.
        """
        self.clear()
        for name in names:
            module = self._module(name)
            if _is_quantised(module) or self._is_shared(module):
                self._branch(module, name, delta(name))
            else:
                self._fold(module, name, delta(name))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Makes sure that a delta of `shape`, (M, N), can be set on the module `name`.

        Raises:
            ModelError, ShapeError: as `set` would.
        """
        module = self._module(name)
        if not _is_quantised(module):
            weight = tuple(_weight(module).shape)
            _check_shape(name, weight, shape[::-1] if _is_transposed(module) else shape)

    def clear(self) -> None:
        """Gives the model its pristine weights back, to the bit."""
        with torch.no_grad():
            for name, pristine in self._pristine.items():
                _weight(self._module(name)).copy_(pristine)
        for handle in self._branches:
            handle.remove()
        self._branches.clear()

    def __enter__(self) -> Fold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def _module(self, name: str) -> nn.Module:
        try:
            return self._model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(
                f"there is an update of {name}, which this model lacks",
                hint="it was made on another base model; see `ella inspect past` or `adapter`",
            ) from error

    def _fold(self, module: nn.Module, name: str, delta: Tensor) -> None:
        weight = _weight(module)
        if name not in self._pristine:
            self._pristine[name] = weight.detach().clone()
        oriented = delta.T if _is_transposed(module) else delta
        _check_shape(name, tuple(weight.shape), tuple(oriented.shape))
        with torch.no_grad():
            whole = self._pristine[name].float() + oriented.to(weight.device)  # as weight, f32
            weight.copy_(whole)

    def _is_shared(self, module: nn.Module) -> bool:
        return id(_weight(module)) in self._shared

    def _branch(self, module: nn.Module, name: str, delta: Tensor) -> None:
        if isinstance(module, nn.Embedding):
            wanted = (module.embedding_dim, module.num_embeddings)
        else:
            wanted = (int(module.out_features), int(module.in_features))  # type: ignore[arg-type]
        _check_shape(name, wanted, tuple(delta.shape))
        if not _is_quantised(module):
            # Once, not at every token.
            delta = delta.to(_weight(module).device, _weight(module).dtype)

        def add_past(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            if isinstance(module, nn.Embedding):
                # Some models scale what they look up, the past with it.
                scale = getattr(module, "embed_scale", 1.0)
                looked_up = nn.functional.embedding(x, delta.T.to(x.device, output.dtype))
                return output + scale * looked_up
            return output + nn.functional.linear(x, delta.to(x.device, x.dtype))

        self._branches.append(module.register_forward_hook(add_past))


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(
            f"{type(module).__name__} has no weight to add a past to",
            hint="adapt linear, Conv1D or embedding modules only",
        )
    return weight


def _is_quantised(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.dtype.is_floating_point


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D | nn.Embedding)


def _check_shape(name: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> None:
    if wanted != got:
        raise ShapeError(
            f"the update of {name} is {got}, this model's weight is {wanted}",
            hint="it was made on another base model; see `ella inspect past` or `adapter`",
        )
