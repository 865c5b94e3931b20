"""Does curvature foretell forgetting? Predicted against measured rise of a past task's loss.

    python -m benchmarks.curvature RUN --data DATA [--rows 100] [--also RUN ...] [--out NAME]

RUN is a finished `ella run` without a penalty, whose adapters have curvature. For each task but the
last, the model is put as it was after that task; then many updates are added to it, and the loss on
train rows that the run has not seen is measured: the adapters of the later stages, whole, scaled,
by thirds of the layers and by kind of module, and random updates of the same norms. `--also` names
runs with a penalty that began with the same adapters: theirs are the hard ones, for they were
trained to cost little by such an estimate. Beside each update the prediction of the task's
curvature is put, and four others: ‖ΔW‖², the paper's ‖ΔW ⊙ W_past‖², and what the whole Fisher
matrix predicts from as many rows of the task's own, `exact`, and from the unseen ones themselves,
`exact_unseen`: the most that any curvature of those rows could foretell.

Two rises are measured, both in nats per answer token: `kl`, the divergence from the answers'
chances before, which is what the prediction approximates; and `rise`, of the loss on the true
answers, which also has a first-order part and can be negative where the task was not yet fully
learnt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.exact_rise import exact_rises
from benchmarks.unseen import with_unseen_rows
from ella_cli.adapter import Adapter, Update
from ella_cli.config import RunSettings
from ella_cli.files import read_json, write_json
from ella_cli.inspect.curvature import costs
from ella_cli.inspect.rank_correlation import rank_correlation
from ella_cli.inspect.run_stages import read_run_stages
from ella_cli.model.base import Base, load_base
from ella_cli.model.fold import Fold
from ella_cli.past import Past
from ella_cli.training.manifest import versions
from ella_cli.training.task import encode_rows

KINDS = ("real", "penalised", "random")
_SCALES = (0.25, 0.5, 1.0)
_RANDOM_SCALES = (0.5, 1.0, 2.0)
_BATCH = 16
_PROBES = 4
PREDICTORS = ("predicted", "exact", "exact_unseen", "norm_square", "energy")


@dataclass(frozen=True)
class Step:
    """An update that is tried."""

    name: str
    kind: str  # one of KINDS
    updates: Mapping[str, Update]


def steps_of(later: list[Adapter], seed: int) -> Iterator[Step]:
    generator = torch.Generator().manual_seed(seed)
    for adapter in later:
        whole = {name: adapter.update(name) for name in adapter.names}
        for factor in _SCALES:
            yield Step(f"{factor:g} × {adapter.task}", "real", _scaled(whole, factor))
        names, third = list(whole), -(-len(whole) // 3)
        for start in range(0, len(names), third):
            part = {name: whole[name] for name in names[start : start + third]}
            yield Step(f"{adapter.task}, modules {start}–{start + len(part) - 1}", "real", part)
        yield from _by_kind(adapter.task, "real", whole)
        for factor in _RANDOM_SCALES:
            drawn = {name: _random(one, generator) for name, one in whole.items()}
            yield Step(f"{factor:g} × random as {adapter.task}", "random", _scaled(drawn, factor))


def penalised_steps(run: Path, before: list[Adapter]) -> Iterator[Step]:
    """The later updates of a run with a penalty that began as `before`; else none."""
    adapters = [one for one in read_run_stages(run).adapters if one is not None]
    if [one.digest for one in adapters[: len(before)]] != [one.digest for one in before]:
        return
    for adapter in adapters[len(before) :]:
        whole = {name: adapter.update(name) for name in adapter.names}
        label = f"{adapter.task} of {run.name}"
        for factor in _SCALES[1:]:
            yield Step(f"{factor:g} × {label}", "penalised", _scaled(whole, factor))
        yield from _by_kind(label, "penalised", whole)


def _by_kind(label: str, kind: str, whole: Mapping[str, Update]) -> Iterator[Step]:
    for ending in sorted({name.rpartition(".")[2] for name in whole}):
        part = {name: one for name, one in whole.items() if name.endswith(ending)}
        yield Step(f"{label}, {ending}", kind, part)


def _scaled(updates: Mapping[str, Update], factor: float) -> dict[str, Update]:
    return {name: Update(one.b, one.a, one.scale * factor) for name, one in updates.items()}


def _random(like: Update, generator: torch.Generator) -> Update:
    """A product of random factors of the same shapes and ‖ΔW‖_F."""
    b = torch.randn(like.b.shape, generator=generator)
    a = torch.randn(like.a.shape, generator=generator)
    drawn = Update(b, a, 1.0)
    return Update(b, a, like.norm / drawn.norm)


def chances(base: Base, rows: list[dict[str, list[int]]]) -> tuple[Tensor, Tensor]:
    """Log-chances (answer tokens, V) f32 and labels of all rows."""
    collate = base.collator()
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    found = []
    with torch.inference_mode():
        for start in range(0, len(ordered), _BATCH):
            logits, labels = base.answer_logits(collate(ordered[start : start + _BATCH]))
            found.append((logits.log_softmax(-1), labels))
    log_chances, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_chances, labels


def nll(log_chances: Tensor, labels: Tensor) -> float:
    return torch.nn.functional.nll_loss(log_chances, labels).item()


def study(
    run: Path, also: list[Path], data: Path, count: int, tasks: list[int] | None
) -> list[dict[str, Any]]:
    stages = read_run_stages(run)
    settings = RunSettings.model_validate(read_json(run / "run.json")["settings"])
    adapters = [one for one in stages.adapters if one is not None]
    base = load_base(settings.model, dtype=settings.dtype)
    points: list[dict[str, Any]] = []
    for index in tasks if tasks else range(len(adapters) - 1):
        held = with_unseen_rows(stages.order[index], settings, data, count)
        rows = encode_rows(base, [replace(held, train=held.test)], settings)
        own = encode_rows(base, [held], settings)
        past = Past.of(adapters[: index + 1])
        steps = [steps_of(adapters[index + 1 :], seed=index)]
        steps += [penalised_steps(other, adapters[: index + 1]) for other in also]
        for point in _points(base, past, rows, own, list(chain.from_iterable(steps))):
            points.append({"task": stages.order[index], **point})
            print(json.dumps(points[-1]), flush=True)
    return points


def _points(
    base: Base,
    past: Past,
    rows: list[dict[str, list[int]]],
    own: list[dict[str, list[int]]],
    steps: list[Step],
) -> Iterator[dict[str, Any]]:
    """What each step does to the last task of `past`, beside what was predicted.

    Args:
        rows: of that task, unseen.
        own: of that task, learned.
    """
    (curvature,) = [c for c in past.curvatures if c.record.adapter == past.tasks[-1].digest]
    terms = {name: curvature.kronecker(name) for name in curvature.names}
    deltas = {name: past.delta(name) for name in past.names}
    with Fold(base.model) as fold:
        fold.set(past.names, deltas.__getitem__)
        before, labels = chances(base, rows)
        own = random.Random(0).sample(own, curvature.record.rows)
        tried = [step.updates for step in steps]
        exact = exact_rises(base, own, tried, probes=_PROBES, seed=0)
        unseen = exact_rises(base, rows, tried, probes=_PROBES, seed=1)
        for step, of_own, of_unseen in zip(steps, exact, unseen, strict=True):
            moved = deltas | {
                name: deltas[name] + _dense(one) for name, one in step.updates.items()
            }
            fold.set(past.names, moved.__getitem__)
            now, _ = chances(base, rows)
            updates = step.updates.items()
            yield {
                "step": step.name,
                "kind": step.kind,
                "kl": float((before.exp() * (before - now)).sum(-1).mean()),
                "rise": nll(now, labels) - nll(before, labels),
                "predicted": math.fsum(costs(step.updates, terms).values()),
                "exact": of_own,
                "exact_unseen": of_unseen,
                "norm_square": math.fsum(one.norm**2 for _, one in updates),
                "energy": math.fsum(
                    float((_dense(one) * deltas[name]).square().sum()) for name, one in updates
                ),
            }


def _dense(update: Update) -> Tensor:
    return update.scale * (update.b @ update.a)


def summary(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rank correlation, slope through the origin, and measured / predicted, by kind of update."""
    found = []
    for kind in (*KINDS, "all"):
        chosen = [p for p in points if kind in ("all", p["kind"])]
        if not chosen:
            continue
        for target in ("kl", "rise"):
            y = [p[target] for p in chosen]
            for predictor in PREDICTORS:
                x = [p[predictor] for p in chosen]
                slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
                ratios = sorted(b / a for a, b in zip(x, y, strict=True))
                found.append({
                    "kind": kind, "target": target, "predictor": predictor, "n": len(chosen),
                    "spearman": rank_correlation(predictor, x, y).rho, "slope": slope,
                    "ratio": {q: ratios[int(q * (len(ratios) - 1))] for q in (0.1, 0.5, 0.9)},
                })  # fmt: skip
    return found


def picture(points: list[dict[str, Any]], path: Path) -> None:
    """Predicted against measured, both axes logarithmic; the line is a perfect prediction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    markers = dict(zip(KINDS, "o^x", strict=True))
    for task in dict.fromkeys(p["task"] for p in points):
        for kind, marker in markers.items():
            chosen = [p for p in points if (p["task"], p["kind"]) == (task, kind)]
            if not chosen:
                continue
            x, y = [p["predicted"] for p in chosen], [p["kl"] for p in chosen]
            axes.plot(x, y, marker, fillstyle="none", label=f"{task}, {kind} updates")
    ends = [min(p["predicted"] for p in points), max(p["predicted"] for p in points)]
    axes.plot(ends, ends, "k--", linewidth=0.8, label="as predicted")
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("predicted rise, nats per answer token")
    axes.set_ylabel("measured divergence from the answers before, nats per token")
    axes.legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100, help="unseen train rows a task")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="runs with a penalty")
    parser.add_argument("--task", type=int, action="append", help="0-based; by default all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/curvature.json"))
    given = parser.parse_args()
    points = study(given.run, given.also, given.data, given.rows, given.task)
    rows = summary(points)
    facts = {"rows": given.rows, "versions": versions()}
    write_json(given.out, {**facts, "summary": rows, "points": points})
    picture(points, given.out.with_suffix(".svg"))
    for row in rows:
        rho = "not claimed" if row["spearman"] is None else f"{row['spearman']:+.3f}"
        print(
            f"{row['kind']:>7} {row['target']:>5} by {row['predictor']:<12} n {row['n']:>3}  "
            f"Spearman {rho}  slope {row['slope']:.3g}  measured / predicted "
            + ", ".join(f"{ratio:.3g}" for ratio in row["ratio"].values())
        )


if __name__ == "__main__":
    main()
