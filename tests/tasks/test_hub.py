"""Rows through `datasets`, from a folder that stands for a hub repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks import Hub, Row, TaskSpec, builtin_spec
from ella_cli.tasks.hub import read_hub, sample_indices


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    rows = "".join(f"title {i},body {i},{i % 2}\n" for i in range(40))
    (folder / "train.csv").write_text("title,content,label\n" + rows)
    (folder / "test.csv").write_text("title,content,label\na,b,0\nc,d,1\n")
    return folder


def _spec(repository: Path, **changes: object) -> TaskSpec:
    facts: dict[str, object] = {
        "dataset": str(repository),
        "train": "train",
        "test": "test",
        "text": "Title: {title}\nText: {content}\n",
        "answer": "label",
        "labels": {"0": "no", "1": "yes"},
        **changes,
    }
    return TaskSpec(name="t", labels=("yes", "no"), hub=Hub(**facts))  # type: ignore[arg-type]


def test_columns_become_text_and_labels_become_words(repository: Path) -> None:
    contents, origin = read_hub(_spec(repository))
    assert len(contents.train) == 40
    assert Row("Title: title 3\nText: body 3\n", "yes") in contents.train
    assert Row("Title: title 4\nText: body 4\n", "no") in contents.train
    assert sorted(row.answer for row in contents.test) == ["no", "yes"]
    assert origin == f"hub: {repository}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer": "topic"}, "no column 'topic'; it has title, content, label"),
        ({"text": "{body}"}, "no column 'body'"),
        ({"labels": {"1": "no", "2": "yes"}}, "20 of 40 rows have a label outside the task's"),
        ({"train": "training"}, "cannot load t from the hub"),
        ({"config": "other"}, "cannot load t from the hub"),
    ],
)
def test_a_copy_that_has_changed_is_an_error_not_other_labels(
    repository: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        read_hub(_spec(repository, **changes))
    assert words in caught.value.message
    assert "--data" in caught.value.hint


def test_without_a_network_the_user_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = builtin_spec("agnews")
    assert spec is not None
    with pytest.raises(TaskError, match="cannot load agnews from the hub") as caught:
        read_hub(spec)
    assert "--data" in caught.value.hint


def test_a_task_on_no_hub_names_its_source() -> None:
    spec = builtin_spec("FOMC")
    assert spec is not None
    with pytest.raises(TaskError) as caught:
        read_hub(spec)
    assert "TRACE" in caught.value.hint


def test_a_sample_takes_so_many_of_each_label() -> None:
    answers: list[str | None] = ["a"] * 10 + ["b"] * 3 + ["c"] * 10
    taken = sample_indices(range(23), answers, 5, 100)
    assert sorted(answers[i] or "" for i in taken) == list("aaaaabbbccccc")
    assert len(sample_indices(range(23), answers, 5, 7)) == 7
    assert taken == sample_indices(range(23), answers, 5, 100)
