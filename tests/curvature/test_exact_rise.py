"""The whole Fisher matrix's prediction is what a small step does to the answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.curvature import chances
from benchmarks.exact_rise import exact_rises
from ella_cli.adapter import Update
from ella_cli.model.base import load_base
from ella_cli.model.fold import Fold
from ella_cli.tasks import build_prompt, load_task
from ella_cli.tasks.batches import Encoder

_STEP = 0.01


def test_a_small_step_diverges_as_the_whole_fisher_matrix_predicts(tiny_llama: Path) -> None:
    base = load_base(str(tiny_llama), dtype="float32", device="cpu")
    base.model.double()
    task = load_task("demo-topic", limit=6)
    encoder = Encoder(base.tokenizer, base.kind, 400, 10)
    rows = [
        encoder.example(build_prompt(task.spec, row, header=False), row.answer)
        for row in task.train
    ]
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    steps = []
    for chosen in (names, names[:1], names[1::2]):
        step = {}
        for name in chosen:
            m, n = base.model.get_submodule(name).weight.shape
            b, a = (torch.randn(shape, generator=generator) for shape in ((m, 2), (2, n)))
            step[name] = Update(b, a, 0.5)
        steps.append(step)
    predicted = exact_rises(base, rows, steps, probes=150, seed=1)
    # Normalised once more, in f64: what f32 leaves of the first order would drown the second.
    before = chances(base, rows)[0].double().log_softmax(-1)
    for step, expected in zip(steps, predicted, strict=True):
        diverged = 0.0
        # Both ways, so that the third order cancels.
        for size in (_STEP, -_STEP):
            deltas = {name: size * one.scale * one.b @ one.a for name, one in step.items()}
            with Fold(base.model) as fold:
                fold.set(tuple(deltas), deltas.__getitem__)
                now = chances(base, rows)[0].double().log_softmax(-1)
            diverged += float((before.exp() * (before - now)).sum(-1).mean()) / 2
        measured = diverged / _STEP**2
        assert measured == pytest.approx(expected, rel=0.15)
    assert max(predicted) > 3 * min(predicted)
