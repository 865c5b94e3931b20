"""The past lies in the weights exactly, and leaves them as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ella_cli.config import LoraFields
from ella_cli.errors import ModelError, ShapeError
from ella_cli.model.base import Base, fingerprint, load_base
from ella_cli.model.fold import Fold
from ella_cli.model.lora import attach_lora, detach_lora, lora_layers, lora_pair


def _deltas(base: Base) -> dict[str, Tensor]:
    """A past for the modules LoRA would adapt, (out, in) each."""
    torch.manual_seed(5)
    model = attach_lora(base, LoraFields(), seed=0)
    layers = lora_layers(model)
    deltas = {n: torch.randn(one.out_features, one.in_features) for n, one in layers.items()}
    detach_lora(model)
    return deltas


def _base(folder: Path, dtype: str) -> Base:
    return load_base(str(folder), dtype=dtype, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folded_module_adds_the_past_to_its_output(tiny_model: Path, dtype: str) -> None:
    base = _base(tiny_model, dtype)
    deltas = _deltas(base)
    fold = Fold(base.model)
    for name, delta in deltas.items():
        module = base.model.get_submodule(name)
        x = torch.randn(3, delta.shape[1], dtype=torch.float64)
        bias = getattr(module, "bias", None)
        before = {n: p.double() for n, p in module.named_parameters()}
        transposed = type(module).__name__ == "Conv1D"
        w0 = before["weight"].T if transposed else before["weight"]
        # The one rounding there may be: of the whole sum, into the weight's own dtype.
        whole = (w0 + delta.double()).to(module.weight.dtype).double()
        expected = x @ whole.T + (bias.double() if bias is not None else 0)
        fold.set([name], lambda _, d=delta: d)  # type: ignore[misc]
        got = module.double()(x)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        module.to(base.model.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaving_a_fold_restores_the_weights_to_the_bit(tiny_model: Path, dtype: str) -> None:
    base = _base(tiny_model, dtype)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    deltas = _deltas(base)
    with Fold(base.model) as fold:
        for scale in (1.0, -3.0, 0.25):
            fold.set(deltas, lambda name, s=scale: s * deltas[name])  # type: ignore[misc]
    after = base.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_beside_a_quantised_module_the_past_is_a_branch() -> None:
    """An integer weight cannot be added to; the output is W0 x + W_past x all the same."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 4, 3
            whole = torch.randint(-5, 5, (3, 4), dtype=torch.int8)
            self.weight = nn.Parameter(whole, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.to(x.dtype).T

    model = nn.ModuleDict({"q": Quantised()})
    x, delta = torch.randn(2, 4), torch.randn(3, 4)
    plain = model["q"](x)
    with Fold(model) as fold:
        fold.set(["q"], lambda _: delta)
        torch.testing.assert_close(model["q"](x), plain + x @ delta.T)
    assert torch.equal(model["q"](x), plain)


@pytest.mark.parametrize("module", ["transformer.wte", "lm_head"])
def test_a_weight_that_modules_share_carries_the_past_of_none_into_another(
    tiny_gpt2: Path, module: str
) -> None:
    """The model with LoRA on one of the two, and the same update as a past, answer alike."""
    base = _base(tiny_gpt2, "float32")
    head = base.model.get_output_embeddings()
    assert head is not None
    assert head.weight is base.model.get_input_embeddings().weight
    ids = torch.arange(12).reshape(2, 6)
    plain = base.model(input_ids=ids).logits
    fields = LoraFields(target_modules=(module.rpartition(".")[2],), lora_dropout=0)
    model = attach_lora(base, fields, seed=0)
    b, a, scale = lora_pair(lora_layers(model)[module])
    with torch.no_grad():
        for factor in (b, a):
            factor.normal_(std=0.1)
        trained = model(input_ids=ids).logits
    delta = scale * b.detach() @ a.detach()
    detach_lora(model)
    with Fold(base.model) as fold:
        fold.check(module, tuple(delta.shape))
        fold.set([module], lambda _: delta)
        torch.testing.assert_close(base.model(input_ids=ids).logits, trained)
        with pytest.raises(ShapeError, match=module):
            fold.set([module], lambda _: delta[:, :-1])
    assert not torch.allclose(trained, plain)
    assert torch.equal(base.model(input_ids=ids).logits, plain)


def test_a_past_of_another_model_is_refused(tiny_llama: Path) -> None:
    base = _base(tiny_llama, "float32")
    name, delta = next(iter(_deltas(base).items()))
    fold = Fold(base.model)
    with pytest.raises(ShapeError, match="this model's weight is"):
        fold.set([name], lambda _: delta[:-1])
    with pytest.raises(ModelError, match="which this model lacks"):
        fold.set(["model.layers.99.self_attn.q_proj"], lambda _: delta)


def test_a_fingerprint_is_the_same_in_every_dtype_and_not_for_other_weights(
    tiny_model: Path,
) -> None:
    base = _base(tiny_model, "float32")
    assert _base(tiny_model, "bfloat16").fingerprint == base.fingerprint
    with torch.no_grad():
        next(base.model.parameters()).add_(1)
    assert fingerprint(base.model) != base.fingerprint


def test_t5_in_fp16_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(ModelError, match="overflow in float16"):
        _base(tiny_t5, "float16")
