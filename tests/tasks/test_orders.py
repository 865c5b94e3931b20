"""Orders by name and by list."""

from __future__ import annotations

from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks import ORDERS, resolve_order
from ella_cli.tasks.grammar import DEMO_NAMES


@pytest.mark.parametrize(
    ("name", "tasks"),
    [
        ("1", "dbpedia amazon yahoo agnews"),
        ("2", "dbpedia amazon agnews yahoo"),
        ("3", "yahoo amazon agnews dbpedia"),
        (
            "4",
            "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
        ),
        (
            "5",
            "multirc boolqa wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
        ),
        (
            "6",
            "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolqa wic",
        ),
        ("trace", "C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten"),
    ],
)
def test_the_published_orders_are_the_published_ones(name: str, tasks: str) -> None:
    assert ORDERS[name] == tuple(tasks.split())


def test_the_demo_order_runs_the_demo_tasks() -> None:
    assert sorted(ORDERS["demo"]) == sorted(DEMO_NAMES)


def test_an_order_is_a_name_or_a_list_with_paths(tmp_path: Path) -> None:
    assert resolve_order("4") == ORDERS["4"]
    assert resolve_order("TRACE") == ORDERS["trace"]
    assert resolve_order(f"dbpedia, SST-2,demo-mood,{tmp_path}") == (
        "dbpedia", "sst2", "demo-mood", str(tmp_path),
    )  # fmt: skip
    assert resolve_order("amazon") == ("amazon",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no task"),
        (" , ", "names no task"),
        ("7", "no order is called '7'"),
        ("dbpedia,amazn", "no task is called 'amazn'"),
        ("sst2,SST-2", "holds 'sst2' twice"),
    ],
)
def test_an_order_that_cannot_be_run_says_why(text: str, words: str) -> None:
    with pytest.raises(TaskError) as caught:
        resolve_order(text)
    assert words in caught.value.message
    assert caught.value.hint
