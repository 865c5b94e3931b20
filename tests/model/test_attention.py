"""Which of torch's attention kernels are taken, and that it changes no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ella_cli.config import TrainSettings
from ella_cli.model.attention import leave_cudnn_attention, short_attention
from ella_cli.model.base import load_base
from ella_cli.model.lora import attach_lora, detach_lora


@pytest.fixture
def cudnn_attention() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("cudnn_attention")
def test_cudnn_attention_is_switched_off_and_no_other() -> None:
    leave_cudnn_attention()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.usefixtures("cudnn_attention")
def test_a_model_on_the_cpu_leaves_cudnn_alone(tiny_llama: Path) -> None:
    load_base(str(tiny_llama), device="cpu")
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.usefixtures("cudnn_attention")
def test_a_model_on_cuda_attends_without_cudnn(tiny_llama: Path) -> None:
    load_base(str(tiny_llama), device="cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("tokens", "grad", "plain"), [(128, True, True), (129, True, False), (128, False, False)]
)
def test_short_rows_attend_by_plain_products_where_a_gradient_is_wanted(
    tokens: int, grad: bool, plain: bool
) -> None:
    ids = torch.zeros(2, tokens, dtype=torch.int64)
    with torch.set_grad_enabled(grad), short_attention(ids):
        assert torch.backends.cuda.flash_sdp_enabled() != plain
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_gradients_are_those_of_the_other_kernels(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    model = attach_lora(base, TrainSettings(lora_dropout=0.0), seed=0)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [8]}, {"input_ids": [9, 4], "labels": [4]}]
    trained = [one for one in model.parameters() if one.requires_grad]

    seen: list[bool] = []
    base.model.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled())
    )

    def gradients() -> list[Tensor]:
        logits, labels = base.answer_logits(base.collator()(rows))
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return list(torch.autograd.grad(loss, trained))

    plain = gradients()
    monkeypatch.setattr("ella_cli.model.attention._PLAIN_UP_TO", 0)
    flash = gradients()
    detach_lora(model)
    assert seen == [False, True]
    assert any(one.abs().max() > 0 for one in plain)
    for one, other in zip(plain, flash, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
