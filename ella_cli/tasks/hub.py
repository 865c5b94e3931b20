"""Rows from the Hugging Face hub, through `datasets`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from ella_cli.errors import TaskError
from ella_cli.tasks.folders import Contents
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import Hub, TaskSpec

# Hub originals have up to 3 million rows. The benchmark draws 1,000 train rows a label and keeps
# at most 7,600 test rows; so do we, with a seed of our own, so the rows are not the same ones.
_TRAIN_PER_LABEL = 1000
_MOST_TRAIN = 20_000
_MOST_TEST = 7600
# Values outside the map are dropped as in local files; more of them means another coding of the
# labels, which must not be taken for this one.
_MOST_STRAY = 0.1


class _Table(Protocol):
    """What is used of a `datasets.Dataset`."""

    column_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, column: str) -> Sequence[Any]: ...
    def select(self, indices: Sequence[int]) -> _Rows: ...


class _Rows(Protocol):
    def to_list(self) -> list[dict[str, Any]]: ...


def read_hub(spec: TaskSpec) -> tuple[Contents, str]:
    """A built-in task's rows, and where they came from.

    Raises:
        TaskError: the task has no known hub data set, the hub cannot be reached, or its columns
            are not the ones the spec names.
    """
    if spec.hub is None:
        raise TaskError(
            f"task {spec.name} is on no hub data set known to be the benchmark's",
            hint=f"get its files ({spec.source}) and name their folder with --data",
        )
    train = _rows(spec, spec.hub, spec.hub.train, _TRAIN_PER_LABEL, _MOST_TRAIN)
    test = _rows(spec, spec.hub, spec.hub.test, None, _MOST_TEST)
    return Contents(spec, train, test, ()), f"hub: {spec.hub.dataset}"


def _rows(
    spec: TaskSpec, hub: Hub, split: str, per_label: int | None, most: int
) -> tuple[Row, ...]:
    table = _load(spec, hub, split)
    if hub.answer not in table.column_names:
        raise TaskError(
            f"{hub.dataset} ({split}) has no column {hub.answer!r}; it has "
            + ", ".join(table.column_names),
            hint="the hub's copy has changed; use local files with --data",
        )
    answers = [_label(hub, value) for value in table[hub.answer]]
    chosen = [index for index, answer in enumerate(answers) if answer is not None]
    if len(chosen) < (1 - _MOST_STRAY) * len(answers):
        strange = next(value for value in table[hub.answer] if _label(hub, value) is None)
        raise TaskError(
            f"{hub.dataset} ({split}): {len(answers) - len(chosen)} of {len(answers)} rows have a "
            f"label outside the task's, first {strange!r}",
            hint="the hub's copy is not the one expected; use local files with --data",
        )
    chosen = sample_indices(chosen, answers, per_label, most)
    rows = []
    for record, index in zip(table.select(chosen).to_list(), chosen, strict=True):
        try:
            text = hub.text.format_map(record)
        except KeyError as error:
            raise TaskError(
                f"{hub.dataset} ({split}) has no column {error.args[0]!r}",
                hint="the hub's copy has changed; use local files with --data",
            ) from error
        rows.append(Row(text, cast(str, answers[index])))
    return tuple(rows)


def sample_indices(
    chosen: Sequence[int], answers: Sequence[str | None], per_label: int | None, most: int
) -> list[int]:
    """Indices shuffled by a fixed seed: at most `per_label` of each answer, `most` in all."""
    shuffled = random.Random(0).sample(chosen, len(chosen))
    taken: dict[str | None, int] = {}
    kept = []
    for index in shuffled:
        taken[answers[index]] = taken.get(answers[index], 0) + 1
        if per_label is None or taken[answers[index]] <= per_label:
            kept.append(index)
    return kept[:most]


def _label(hub: Hub, value: object) -> str | None:
    if not hub.labels:
        return str(value) if value is not None and str(value).strip() else None
    labels: Mapping[str, str] = hub.labels
    return labels.get(str(value))


def _load(spec: TaskSpec, hub: Hub, split: str) -> _Table:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return cast(_Table, datasets.load_dataset(hub.dataset, hub.config, split=split))
    # What `datasets` raises without a network, for a data set gone from the hub (both are
    # OSErrors), and for a changed config or split.
    except (
        OSError,
        HfHubHTTPError,
        DatasetsError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TaskError(
            f"cannot load {spec.name} from the hub ({hub.dataset}): {reason:.160}",
            hint="check the network, or name a folder with the task's files with --data",
        ) from error
