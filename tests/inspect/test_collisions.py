from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ella_cli.inspect.collisions import collisions_of
from ella_cli.past import Past, accumulate, read_past
from tests.inspect.conftest import MODULES, WriteAdapter, random_factors, updates_of


def test_pairs_of_tasks_meet_as_their_multiplied_out_updates_do(factored: Past) -> None:
    found = collisions_of(factored)
    parts = [updates_of(random_factors(seed)) for seed in range(3)]
    for i in range(3):
        for j in range(3):
            a, b = parts[i], parts[j]
            penalty = sum(float((a[n] * b[n]).square().sum()) for n in MODULES)
            chance = sum(float((a[n].norm() * b[n].norm()) ** 2) / a[n].numel() for n in MODULES)
            assert found.collision[i][j] == pytest.approx(penalty / chance, rel=1e-6)
            one, two = (torch.cat([u[n].flatten() for n in MODULES]) for u in (a, b))
            cosine = float(one @ two / (one.norm() * two.norm()))
            assert found.cosine[i][j] == pytest.approx(cosine, abs=1e-6)


def test_tasks_without_a_module_in_common_do_not_collide(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    names = list(MODULES)
    halves = [random_factors(0, {n: MODULES[n] for n in names[i::2]}) for i in range(2)]
    folders = [write_adapter(f"half{i}", factors=half) for i, half in enumerate(halves)]
    path = tmp_path / "past.safetensors"
    accumulate(folders, path, store="factored")
    found = collisions_of(read_past(path))
    assert found.collision[0][1] is None
    assert found.cosine[0][1] == 0
    assert found.cosine[0][0] == pytest.approx(1)


def test_a_past_that_cannot_tell_says_why(dense: Past) -> None:
    found = collisions_of(dense)
    assert found.tasks == ()
    assert "dense" in found.why_not
