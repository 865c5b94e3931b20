"""What an adapter, a run or a past is, in words: made from what, to be merged with what, and what
is missing. The lineage is a tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import Energy
from ella_cli.inspect.missing import missing_of_adapter, missing_of_past, missing_of_run
from ella_cli.inspect.run_stages import RunStages, read_run_stages
from ella_cli.past import PastTask, read_past
from ella_cli.run_paths import RunPaths

_SHORT = 12


@dataclass(frozen=True)
class Node:
    """One step of a lineage; what was built on it hangs below it."""

    text: str
    below: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Origin:
    """`sentences` say what it is, `missing` what one might look for and not find."""

    kind: Literal["adapter", "run", "past"]
    path: str
    sentences: tuple[str, ...]
    missing: tuple[str, ...]
    lineage: Node
    facts: Mapping[str, Any]


def adapter_origin(folder: Path) -> Origin:
    """
    Raises:
        AdapterError: no adapter there, or one whose ΔW is not scale · B A.
    """
    adapter = read_adapter(folder)
    manifest = adapter.manifest or {}
    norm = sum(adapter.update(name).norm ** 2 for name in adapter.names) ** 0.5
    base = _base_of(adapter)
    earlier = _earlier(adapter)
    sentences = [
        f"a LoRA adapter for {adapter.task}: {_ranks(adapter)}, on {len(adapter.names)} modules of "
        f"{base or 'a base model it does not name'} ({', '.join(_kinds(adapter.names))})",
        f"its update has ‖ΔW‖ = {norm:.4g}",
    ]
    if adapter.manifest is None:
        sentences.append("it has no ella.json: it was trained elsewhere")
    else:
        sentences.append(_training(manifest))
    if earlier:
        sentences.append(
            f"it was trained on top of {', '.join(earlier)}: merge it with their updates "
            "(`ella accumulate`, then `ella export`); alone on the base it is not the model that "
            "was trained"
        )
    elif adapter.manifest is not None:
        sentences.append("it was trained on the base alone, and can be used on it as it is")
    return Origin(
        kind="adapter",
        path=str(folder),
        sentences=tuple(sentences),
        missing=tuple(missing_of_adapter(adapter)),
        lineage=_chain(base or "unknown base", [*earlier, f"{adapter.task} (this adapter)"]),
        facts={
            "task": adapter.task,
            "base_model": base,
            "modules": len(adapter.names),
            "ranks": sorted({adapter.rank(name) for name in adapter.names}),
            "update_norm": norm,
            "digest": adapter.digest,
            "trained_on_top_of": list(earlier),
            "manifest": None if adapter.manifest is None else dict(adapter.manifest),
        },
    )


def past_origin(path: Path) -> Origin:
    """
    Raises:
        PastError: missing or damaged.
    """
    past = read_past(path)
    kind = past.record.energy
    weights = [f"the last {kind.last} tasks"] if kind.last else []
    weights += [f"decay {kind.decay:g} a task"] if kind.decay else []
    form = "each task's factors" if past.store == "factored" else "one matrix a module"
    sentences = [
        f"the past of {_count(len(past.tasks), 'task')} on {_count(len(past.names), 'module')} of "
        f"{past.base.model or 'a base model it does not name'}, kept as {form}",
        f"its energy is {_ENERGIES[past.energy]}" + (f", {', '.join(weights)}" if weights else ""),
        "merged into that base it gives the model after "
        + (past.tasks[-1].name if past.tasks else "no task"),
    ]
    parameters = sum(past.shape(name)[0] * past.shape(name)[1] for name in past.names)
    return Origin(
        kind="past",
        path=str(path),
        sentences=tuple(sentences),
        missing=tuple(missing_of_past(past)),
        lineage=_chain(past.base.model or "unknown base", [_task_text(t) for t in past.tasks]),
        facts={
            "store": past.store,
            "energy": past.energy,
            "last": kind.last,
            "decay": kind.decay,
            "base": {"model": past.base.model, "fingerprint": past.base.fingerprint},
            "modules": len(past.names),
            "coordinates": parameters,
            "bytes": path.stat().st_size,
            "digest": past.digest,
            "tasks": [_task_facts(task) for task in past.tasks],
        },
    )


def run_origin(folder: Path) -> Origin:
    """
    Raises:
        StorageError: it is no run.
        AdapterError, PastError: a stage or the past is damaged.
    """
    run = read_run_stages(folder)
    trained = [stage for stage, a in zip(run.stages, run.adapters, strict=True) if a is not None]
    base = run.record.get("base")
    model = str(base.get("model", "")) if isinstance(base, Mapping) else ""
    sentences = [
        f"a run of {run.method} over {_count(len(run.order), 'task')}: {', '.join(run.order)}",
        f"{len(trained)} of {_count(len(run.stages), 'stage')} trained"
        + ("" if run.accuracy is None else ", and scored"),
    ]
    if run.accuracy is not None and run.accuracy.oa is not None:
        bwt = run.accuracy.bwt
        sentences.append(f"OA {run.accuracy.oa:.3f}" + ("" if bwt is None else f", BWT {bwt:+.3f}"))
    command = run.record.get("command")
    if command:
        sentences.append(f"made by: {command}")
    past_path = RunPaths(folder).past
    past = read_past(past_path) if past_path.is_file() else None
    return Origin(
        kind="run",
        path=str(folder),
        sentences=tuple(sentences),
        missing=tuple(missing_of_run(run, past)),
        lineage=_run_lineage(run, model or "unknown base"),
        facts={
            "method": run.method,
            "order": list(run.order),
            "trained": trained,
            "past": None if past is None else past.digest,
            "results": None if run.accuracy is None else run.accuracy.figures,
            "record": dict(run.record),
        },
    )


_ENERGIES: Mapping[Energy, str] = {
    "sum": "|Σ ΔW|, the paper's",
    "abs": "Σ |ΔW|, in which opposite signs do not cancel",
    "rss": "sqrt(Σ ΔW²), in which opposite signs do not cancel",
    "curvature": "curvature, what the tasks' answers depend on",
}


def _training(manifest: Mapping[str, Any]) -> str:
    words = [f"trained with {manifest.get('method', 'an unknown method')}"]
    if manifest.get("lambda"):
        words.append(f"λ = {manifest['lambda']:g}")
    if manifest.get("seed") is not None:
        words.append(f"seed {manifest['seed']}")
    rows = (manifest.get("data") or {}).get("train_rows")
    if rows is not None:
        words.append(f"on {rows} rows")
    if manifest.get("seconds") is not None:
        words.append(f"in {manifest['seconds']:.0f} s")
    return ", ".join(words)


def _task_text(task: PastTask) -> str:
    lam = "λ not known" if task.lam is None else f"λ {task.lam:g}"
    shrunk = f", shrunk with λ {task.shrink:g}" if task.shrink is not None else ""
    return (
        f"{task.name}: rank {task.rank}, {lam}, ‖ΔW‖ {task.update_norm:.4g}{shrunk}, "
        f"added {task.date[:10]}, {task.digest[:_SHORT]}"
    )


def _task_facts(task: PastTask) -> dict[str, Any]:
    return {
        "name": task.name,
        "digest": task.digest,
        "lambda": task.lam,
        "update_norm": task.update_norm,
        "rank": task.rank,
        "scale": task.scale,
        "date": task.date,
        "folder": task.folder,
        "shrink": task.shrink,
    }


def _run_lineage(run: RunStages, base: str) -> Node:
    if run.method == "joint":
        return _chain(base, [f"{', '.join(run.order)} together"])
    steps = [_stage_text(run, t) for t in range(len(run.order))]
    if run.method == "single":
        # Each task stands on the base, not on the one before it.
        return Node(base, tuple(Node(f"+ {step}") for step in steps))
    return _chain(base, steps)


def _stage_text(run: RunStages, t: int) -> str:
    if run.adapters[t] is None:
        return f"{run.order[t]}: not trained yet"
    score = None if run.accuracy is None else run.accuracy.matrix[t][t]
    last = None if run.accuracy is None else run.accuracy.matrix[-1][t]
    if score is None:
        return run.order[t]
    text = f"{run.order[t]}: learned {score:.3f}"
    return text if last is None or t == len(run.order) - 1 else f"{text}, at the end {last:.3f}"


def _chain(root: str, steps: Sequence[str]) -> Node:
    """Each step hangs below the one it was trained on."""
    below: tuple[Node, ...] = ()
    for step in reversed(steps):
        below = (Node(f"+ {step}", below),)
    return Node(root, below)


def _base_of(adapter: Adapter) -> str:
    base = (adapter.manifest or {}).get("base")
    named = base.get("model") if isinstance(base, Mapping) else None
    return str(named or adapter.base_model)


def _earlier(adapter: Adapter) -> tuple[str, ...]:
    past = (adapter.manifest or {}).get("past")
    tasks = past.get("tasks") if isinstance(past, Mapping) else None
    return tuple(str(task) for task in tasks or ())


def _ranks(adapter: Adapter) -> str:
    ranks = sorted({adapter.rank(name) for name in adapter.names})
    scales = sorted({source.scale for source in adapter.sources.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    scale = f"scale {scales[0]:g}" if len(scales) == 1 else "several scales"
    return f"{rank}, {scale}"


def _kinds(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
