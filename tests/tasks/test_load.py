"""From a name or path to rows, in every layout that is understood."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ella_cli.errors import TaskError
from ella_cli.tasks import ORDERS, Row, load_task, resolve_order

WriteFolder = Callable[..., Path]

SST2 = [{"sentence": f"Text: film {i} ", "label": ("Good", "Bad")[i % 2]} for i in range(6)]
TEST = [{"sentence": "Text: another ", "label": "Good"}]
AS_ROWS = tuple(Row(row["sentence"], row["label"]) for row in SST2)


def test_our_own_layout_is_read(write_folder: WriteFolder, tmp_path: Path) -> None:
    write_folder(
        "data/cl/sst2",
        {"train.jsonl": SST2, "test.jsonl": TEST, "labels.json": ["Good", "Bad"]},
    )
    task = load_task("sst2", data=tmp_path / "data")
    assert task.train == AS_ROWS
    assert task.test == (Row("Text: another ", "Good"),)
    assert task.warnings == ()
    assert task == load_task("SST-2", data=tmp_path / "data" / "cl")


@pytest.mark.parametrize("wrapped", [False, True])
def test_o_loras_layout_is_read(write_folder: WriteFolder, tmp_path: Path, wrapped: bool) -> None:
    instances = [{"input": row["sentence"], "output": row["label"]} for row in SST2]
    train: object = {"Definition": ["d"], "Instances": instances} if wrapped else SST2
    write_folder(
        "CL_Benchmark/SC/SST-2",
        {"train.json": train, "dev.json": TEST, "test.json": TEST, "labels.json": ["Good", "Bad"]},
    )
    assert load_task("sst2", data=tmp_path / "CL_Benchmark").train == AS_ROWS


def test_traces_layout_is_read(write_folder: WriteFolder, tmp_path: Path) -> None:
    rows = [{"prompt": f"Solve the following math problem.\nQuestion:\n{i}+1\nAnswer:",
             "answer": str(i + 1)} for i in range(4)]  # fmt: skip
    files = {"train.json": rows[:2], "eval.json": rows[2:3], "test.json": rows[3:]}
    write_folder("trace/NumGLUE-cm", files)
    task = load_task("NumGLUE-cm", data=tmp_path)
    assert [row.answer for row in task.train] == ["1", "2"]
    assert [row.answer for row in task.test] == ["4"]


def test_the_folders_own_labels_go_before_the_descriptions(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    write_folder(
        "sst2",
        {"train.jsonl": SST2, "test.jsonl": TEST, "labels.json": ["Bad", "Good"]},
    )
    assert load_task("sst2", data=tmp_path).spec.labels == ("Bad", "Good")


def test_a_task_that_is_there_twice_must_be_chosen(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    for size in ("500", "5000"):
        write_folder(f"trace/{size}/FOMC", {"train.json": [], "test.json": []})
    with pytest.raises(TaskError, match="holds FOMC 2 times") as caught:
        load_task("FOMC", data=tmp_path)
    assert "--data" in caught.value.hint


def test_a_csv_with_two_columns_is_a_task(write_folder: WriteFolder) -> None:
    folder = write_folder(
        "parcels",
        {
            "train.csv": "text,label\n" + "late,complaint\nwhen?,question\n" * 5,
            "test.csv": "text,label\nbroken,complaint\nwhere?,question\n",
        },
    )
    task = load_task(str(folder))
    assert task.spec.name == "parcels"
    assert task.spec.labels == ("complaint", "question")
    assert task.spec.instruction
    assert task.spec.frame
    assert len(task.train) == 10


def test_task_yaml_says_what_the_files_do_not(write_folder: WriteFolder) -> None:
    folder = write_folder(
        "parcels",
        {
            "task.yaml": "name: post\ninstruction: What is it?\nlabels: [question, complaint]\n"
            "columns: {text: '{subject}: {body}', answer: kind}\n",
            "train.jsonl": [{"subject": "s", "body": "b", "kind": "Complaint", "id": 1}],
            "test.jsonl": [{"subject": "t", "body": "b", "kind": "question", "id": 2}],
        },
    )
    task = load_task(str(folder))
    assert task.spec.name == "post"
    assert task.spec.labels == ("question", "complaint")
    assert task.train == (Row("s: b", "complaint"),)


def test_chats_become_free_text_scored_by_overlap(write_folder: WriteFolder) -> None:
    def chat(i: int) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": f"question {i}"},
                             {"role": "assistant", "content": f"answer {i}"}]}  # fmt: skip

    folder = write_folder("chats", {"train.jsonl": [chat(1), chat(2)], "test.jsonl": [chat(3)]})
    task = load_task(str(folder))
    assert task.train[0] == Row("question 1", "answer 1")
    assert task.spec.labels == ()
    assert task.spec.metric == "rouge-l"
    assert not task.spec.frame


@pytest.mark.parametrize("yaml", ["instruction: Sum it up.", "frame: false", "options: true"])
def test_free_text_is_scored_by_overlap_unless_task_yaml_says_otherwise(
    write_folder: WriteFolder, yaml: str
) -> None:
    rows = "text,answer\n" + "".join(f"text {i},answer number {i}\n" for i in range(6))
    files = {"train.csv": rows, "test.csv": rows.replace(" ", " other ")}
    free = write_folder("free", {**files, "task.yaml": yaml})
    assert load_task(str(free)).spec.metric == "rouge-l"
    exact = write_folder("exact", {**files, "task.yaml": f"{yaml}\nmetric: accuracy"})
    assert load_task(str(exact)).spec.metric == "accuracy"


def test_a_folder_written_as_a_path_is_not_the_built_in_task_of_its_name(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "text,label\na,x\nb,x\nc,y\nd,y\n"
    folder = write_folder("amazon", {"train.csv": rows, "test.csv": "text,label\ne,x\n"})
    monkeypatch.chdir(folder.parent)
    assert load_task("./amazon").spec.labels == ("x", "y")
    assert resolve_order("./amazon,amazon") == ("./amazon", "amazon")


def test_a_folder_below_data_goes_by_its_name(write_folder: WriteFolder, tmp_path: Path) -> None:
    rows = "text,label\na,x\nb,x\nc,y\nd,y\n"
    write_folder("data/mine", {"train.csv": rows, "test.csv": rows.replace("a", "e")})
    assert load_task("mine", data=tmp_path / "data").spec.labels == ("x", "y")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train.csv": "text,label\na,x\n"}, "has no test file"),
        ({"test.csv": "text,label\na,x\n", "eval.csv": ""}, "there is eval.csv, test.csv"),
        ({}, "there is no such file"),
        ({"train.csv": "text,label\na,x\n", "train.jsonl": "", "test.csv": ""}, "train.jsonl and"),
        (
            {"train.csv": "text,label\na,x\n", "test.csv": "text,label\na,y\n",
             "labels.json": ["x", "z"]},
            "label outside the set, first 'y'",
        ),
        ({"train.csv": "text,label\na,x\n", "test.csv": "text,label\nb,x\n", "labels.json": []},
         "empty label set"),
    ],
)  # fmt: skip
def test_a_folder_that_makes_no_task_says_why(
    write_folder: WriteFolder, files: dict[str, object], words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(str(write_folder("mine", files)))
    assert words in caught.value.message
    assert caught.value.hint


def test_a_label_never_seen_in_train_is_told(write_folder: WriteFolder) -> None:
    folder = write_folder(
        "mine",
        {"train.csv": "text,label\na,x\nb,x\nc,y\nd,y\n", "test.csv": "text,label\ne,z\nf,z\n"},
    )
    assert "no train row has the label 'z'" in load_task(str(folder)).warnings


@pytest.mark.parametrize(
    ("name", "words", "next_step"),
    [
        ("amazn", "no task is called 'amazn'", "did you mean amazon"),
        ("./nowhere", "no folder ./nowhere", "train and test files"),
    ],
)
def test_a_task_that_is_not_there_is_named(name: str, words: str, next_step: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(name)
    assert words in caught.value.message
    assert next_step in caught.value.hint


def test_data_without_the_task_does_not_go_to_the_hub_unasked(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="has no folder for the task agnews"):
        load_task("agnews", data=tmp_path)
    with pytest.raises(TaskError, match="is not a folder"):
        load_task("agnews", data=tmp_path / "nowhere")


def test_a_limit_leaves_at_least_a_row() -> None:
    assert len(load_task("demo-mood", limit=1).train) == 1
    with pytest.raises(TaskError, match="--limit 0"):
        load_task("demo-mood", limit=0)


def test_text_needs_no_tensors() -> None:
    heavy = "torch transformers datasets pandas pyarrow numpy"
    code = (
        "import sys; from ella_cli.tasks import load_task; load_task('demo-mood', limit=3); "
        f"print(*sorted(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif("ELLA_DATA" not in os.environ, reason="ELLA_DATA names no folder of real tasks")
@pytest.mark.parametrize("name", ORDERS["4"])
def test_real_tasks_load_without_a_warning(name: str) -> None:
    task = load_task(name, data=Path(os.environ["ELLA_DATA"]))
    assert task.warnings == ()
    assert {row.answer for row in (*task.train, *task.test)} <= set(task.spec.labels)
