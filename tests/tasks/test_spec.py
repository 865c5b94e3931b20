"""Task descriptions: the built-in ones, and what a task.yaml may say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks import ORDERS, builtin_names, builtin_spec
from ella_cli.tasks.spec import METRICS, TaskSpec, near_names, read_spec


def test_every_published_order_is_made_of_described_tasks() -> None:
    published = {task for name, order in ORDERS.items() if name != "demo" for task in order}
    assert published == set(builtin_names())
    assert len(published) == 15 + 8


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_task_says_what_it_is_and_where_it_is_from(name: str) -> None:
    spec = builtin_spec(name)
    assert spec is not None
    assert spec.name == name
    assert spec.title
    assert spec.citation
    assert spec.source != "unknown"
    assert spec.metric in METRICS
    if spec.hub is not None and spec.hub.labels is not None:
        assert set(spec.hub.labels.values()) == set(spec.labels)


def test_labels_that_yaml_would_take_for_other_things_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("name: odd\nlabels: [True, no, 1, 1.0, 2024-01-01]\noptions: false\n")
    spec = read_spec(path)
    assert spec.labels == ("True", "no", "1", "1.0", "2024-01-01")
    assert spec.options is False


def test_a_task_is_found_whatever_its_case_and_punctuation() -> None:
    assert builtin_spec("SST-2") == builtin_spec("sst2")
    assert builtin_spec("BoolQA") == builtin_spec("boolqa")
    assert builtin_spec("20minuten") is not None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labels: []", "empty label set"),
        ("label: [a, b]", "label: "),
        ("metric: f1", "metric"),
        ("labels: [a, a]", "'a' twice"),
        ("labels: ['a', ' ']", "empty label"),
        ("name: a/b", "cannot be a task's name"),
        ("name: ..", "cannot be a task's name"),
        ("name: ''", "cannot be a task's name"),
        (f"name: {'a' * 201}", "cannot be a task's name"),
        ('labels: [x, "z\\ud83d"]', "half a character"),
        ("- a\n- b", "does not describe a task"),
        ("labels: [a\n", "not YAML at line"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(TaskError) as caught:
        read_spec(path, defaults={"name": "t"})
    assert words in caught.value.message
    assert caught.value.hint


def test_near_names_find_a_slip_of_the_finger() -> None:
    assert near_names("amazn", builtin_names())[0] == "amazon"
    assert near_names("MeetingBnk", builtin_names()) == ("MeetingBank",)
    assert near_names("qqqqqqqqqq", builtin_names()) == ()


def test_near_names_work_in_any_script() -> None:
    assert near_names("立场支特", ("立场支持", "其他反对")) == ("立场支持",)


def test_all_that_prompts_and_scores_are_made_with_is_in_the_digest() -> None:
    spec = TaskSpec("a", labels=("x", "y"))
    for change in (
        {"instruction": "Which?"}, {"labels": ("y", "x")}, {"options": False}, {"frame": False},
        {"cut": "start"}, {"metric": "rouge-l"}, {"compare": "first-letter"}, {"dataset": "D"},
    ):  # fmt: skip
        assert replace(spec, **change).digest != spec.digest
    assert replace(spec, version=9, citation="c", title="t").digest == spec.digest
