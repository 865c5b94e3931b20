"""What one might look for in an adapter, a run or a past and not find."""

from __future__ import annotations

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.errors import AdapterError, StorageError
from ella_cli.inspect.overlap import contained_as
from ella_cli.inspect.run_stages import RunStages
from ella_cli.past import Past, PastTask
from ella_cli.run_paths import stage_name


def missing_of_adapter(adapter: Adapter) -> list[str]:
    missing = []
    if adapter.manifest is None:
        missing.append("ella.json: which past it was trained on, with which λ and rows, is unknown")
    elif not (adapter.manifest.get("base") or {}).get("fingerprint"):
        missing.append("the base model's fingerprint is not recorded")
    if not adapter.base_model and adapter.manifest is None:
        missing.append("adapter_config.json names no base model")
    return missing


def missing_of_run(run: RunStages, past: Past | None) -> list[str]:
    untrained = [stage for stage, a in zip(run.stages, run.adapters, strict=True) if a is None]
    missing = [f"not trained yet: {', '.join(untrained)}"] if untrained else []
    for t, adapter in enumerate(run.adapters):
        stage = stage_name(t, run.stages[t])
        # A task trained alone is asked for nothing else.
        asked = run.order[t : t + 1] if run.method == "single" else run.order
        unscored = [task for task in asked if task not in run.scored.get(stage, frozenset())]
        if adapter is not None and unscored:
            missing.append(f"{stage} is not scored on {', '.join(unscored)}")
    # Of tasks learned apart, or all at once, none comes before another.
    transfers = run.method not in ("single", "joint")
    if transfers and not run.scored.get("base"):
        missing.append("the untouched base is not scored, so zero-shot FWT is not known")
    if transfers and run.accuracy is not None and run.accuracy.single is None:
        missing.append("no task was trained alone, so plasticity FWT is not known")
    if run.accuracy is None:
        missing.append("no results.json; the same `ella run` goes on and writes it")
    if past is None:
        if run.is_summed:
            missing.append("no wpast.safetensors")
        return missing
    for adapter in run.adapters:
        if adapter is not None and contained_as(adapter, past) is None:
            missing.append(f"the past does not hold {adapter.task} as it is in stages/")
    return missing


def missing_of_past(past: Past) -> list[str]:
    missing = [] if past.base.fingerprint else ["the base model's fingerprint is not recorded"]
    return missing + [text for task in past.tasks if (text := _adapter_missing(task, past))]


def _adapter_missing(task: PastTask, past: Past) -> str:
    folder = past.folder_of(task)
    if folder is None:
        return ""
    if not (folder / "adapter_config.json").is_file():
        return f"the adapter of {task.name} is no longer at {task.folder}"
    try:
        found = read_adapter(folder)
    except (AdapterError, StorageError) as error:
        return f"the adapter of {task.name} cannot be read any more: {error.message}"
    if found.digest != task.digest:
        return f"the adapter at {task.folder} is no longer the one that was added as {task.name}"
    return ""
