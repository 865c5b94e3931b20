"""How many columns of U and V do directions need? What bases of each size leave unseen.

    python -m benchmarks.columns RUN [--also RUN ...] --data DATA [--task 0] [--rows 32]
        [--probes 4] [--out FILE]

RUN is a finished `ella run` with a penalty. The model is put as it was after one of its tasks, and
the later stages' updates, RUN's and of runs that share the stages so far, are added in thought:
by the whole Fisher matrix of `--rows` rows, an update ΔW moves a probed example by Σ_m ⟨ΔW_m, J_m⟩
over modules m, which costs the mean of half its square. With J_m and ΔW_m in the leading k and k'
eigenvectors of the rows' own G and C only, how much of that is unseen? What is printed is the
square of the part left out, over the whole: at 0.1 an update that the basis says costs nothing
still costs a tenth. Eigenvectors are of the same probes, as few as they are, so that this is what
the basis alone leaves out.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.exact_rise import probed
from ella_cli.adapter import Adapter, Update
from ella_cli.config import RunSettings
from ella_cli.files import read_json, write_json
from ella_cli.inspect.run_stages import read_run_stages
from ella_cli.model.base import Base, load_base
from ella_cli.model.fold import Fold
from ella_cli.past import Past
from ella_cli.tasks import load_task
from ella_cli.training.manifest import versions
from ella_cli.training.task import encode_rows

OUTPUTS = (16, 32, 64, 96, 128)
INPUTS = (1, 2, 4, 8, 16, 32)


def gradients(
    base: Base, rows: list[dict[str, list[int]]], names: tuple[str, ...], probes: int
) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], int]:
    """Inputs and output gradients by module and batch, and the answer tokens probed."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    tokens = 0
    for count, looked_at in probed(base, rows, names, probes=probes, seed=11):
        tokens += count
        for name, (x, g) in looked_at.items():
            found[name].append((x.float(), g.float()))
    return found, tokens


def unseen_shares(
    looked_at: dict[str, list[tuple[Tensor, Tensor]]], tokens: int, steps: list[dict[str, Update]]
) -> list[dict[str, Any]]:
    """Of each step: its cost, nats per answer token, and what each basis leaves out of it."""
    whole: list[Any] = [0.0] * len(steps)  # (E,) f64 each
    inside: list[Any] = [0.0] * len(steps)  # (E, OUTPUTS, INPUTS) f64 each
    for name, batches in looked_at.items():
        j = torch.cat([torch.bmm(g.mT, x) for x, g in batches]) * tokens**-0.5  # (E, M, N)
        g, c = torch.einsum("emn,ekn->mk", j, j), torch.einsum("emn,emk->nk", j, j)
        u, v = (torch.linalg.eigh(one.double()).eigenvectors.flip(1).float() for one in (g, c))
        turned = u.T @ (j @ v)  # (E, M, N), in the eigenvectors
        # Which of them each basis has.
        rows, columns = _leading(OUTPUTS, len(u)), _leading(INPUTS, len(v))
        for i, step in enumerate(steps):
            one = step[name]
            moves = turned * ((u.T @ one.b) @ (one.a @ v) * one.scale)
            whole[i] = whole[i] + moves.sum((1, 2), dtype=torch.float64)
            inside[i] = inside[i] + (rows @ moves @ columns.T).double()
    return [
        {
            "cost": 0.5 * float(all_of_it.square().sum()),
            "unseen": {
                f"{k}x{kk}": float(
                    (all_of_it - parts[:, i, j]).square().sum() / all_of_it.square().sum()
                )
                for i, k in enumerate(OUTPUTS)
                for j, kk in enumerate(INPUTS)
            },
        }
        for all_of_it, parts in zip(whole, inside, strict=True)
    ]


def _leading(counts: tuple[int, ...], width: int) -> Tensor:
    """(counts, width): ones for the leading of each."""
    return (torch.arange(width) < torch.tensor(counts)[:, None]).float()


def later_updates(run: Path, before: list[Adapter]) -> dict[str, dict[str, Update]]:
    adapters = [one for one in read_run_stages(run).adapters if one is not None]
    if [one.digest for one in adapters[: len(before)]] != [one.digest for one in before]:
        raise SystemExit(f"{run} did not begin with the same adapters")
    return {
        f"{one.task} of {run.name}": {name: one.update(name) for name in one.names}
        for one in adapters[len(before) :]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", type=int, default=0, help="0-based")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/columns.json"))
    given = parser.parse_args()
    stages = read_run_stages(given.run)
    settings = RunSettings.model_validate(read_json(given.run / "run.json")["settings"])
    before = [one for one in stages.adapters if one is not None][: given.task + 1]
    base = load_base(settings.model, dtype=settings.dtype)
    task = load_task(
        stages.order[given.task], data=given.data, limit=settings.limit,
        validation=settings.validation, seed=settings.seed,
    )  # fmt: skip
    rows = encode_rows(base, [task], settings)
    rows = random.Random(7).sample(rows, min(given.rows, len(rows)))
    steps: dict[str, dict[str, Update]] = {}
    for run in (given.run, *given.also):
        steps |= later_updates(run, before)
    past = Past.of(before)
    with Fold(base.model) as fold:
        fold.set(past.names, past.delta)
        looked_at, tokens = gradients(base, rows, past.names, given.probes)
    found = dict(zip(steps, unseen_shares(looked_at, tokens, list(steps.values())), strict=True))
    facts = {"task": task.spec.name, "rows": len(rows), "probes": given.probes}
    write_json(given.out, {**facts, "versions": versions(), "updates": found})
    for name, one in found.items():
        print(f"{name}: costs {one['cost']:.4f}; unseen by columns of U (down) and V (across)")
        print("       " + "".join(f"{k:7}" for k in INPUTS))
        for k in OUTPUTS:
            print(f"  {k:5}" + "".join(f"{one['unseen'][f'{k}x{kk}']:7.2f}" for kk in INPUTS))


if __name__ == "__main__":
    main()
