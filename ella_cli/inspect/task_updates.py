"""Each task's own update within a past, where the past still knows tasks apart.

A factored past keeps one pair of factors a task until it is compacted; a dense one keeps sums only.
"""

from __future__ import annotations

from ella_cli.kernels import Factors
from ella_cli.past import Past
from ella_cli.past.factored import FactoredStore


def separate_tasks(past: Past) -> tuple[str, ...]:
    """The tasks whose updates can be told apart, oldest first; empty where they cannot be."""
    store = past.contents
    if isinstance(store, FactoredStore) and all(block.tasks == 1 for block in store.blocks):
        return _distinct([task.name for task in past.tasks])
    return ()


def why_not_separate(past: Past) -> str:
    if not past.tasks:
        return "the past holds no task"
    if past.store == "dense":
        return "a dense past holds only the sum of its tasks"
    return "the past was compacted, which joined its tasks"


def task_updates(past: Past, name: str) -> tuple[Factors | None, ...]:
    """One module's ΔW_i in f64, in the order of `separate_tasks`; None where a task has none."""
    store = past.contents
    assert isinstance(store, FactoredStore)
    found: list[Factors | None] = []
    for index in range(len(store.blocks)):
        weights = [1.0 if other == index else 0.0 for other in range(len(store.blocks))]
        updates = store.updates(name, weights)
        if not updates:
            found.append(None)
            continue
        ((update, _),) = updates
        found.append(Factors(update.b.double() * update.scale, update.a.double()))
    return tuple(found)


def signed_sum(past: Past, name: str) -> Factors | None:
    """Σ ΔW_i of one module as factors in f32, or None where only a matrix is kept."""
    store = past.contents
    if isinstance(store, FactoredStore):
        return store.factors(name, (1.0,) * len(store.blocks))
    return None


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Names with a count behind those that come again."""
    seen: dict[str, int] = {}
    shown = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        shown.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(shown)
