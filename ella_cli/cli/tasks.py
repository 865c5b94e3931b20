"""`ella tasks`: which tasks there are, what one holds, and whether a folder makes one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ella_cli.cli.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from ella_cli.tasks import Task, TaskSpec
    from ella_cli.tasks.summary import TaskSummary

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of local tasks, instead of the Hugging Face hub."),
]

tasks = typer.Typer(
    help="List, show and check tasks.", no_args_is_help=True, rich_markup_mode="rich"
)


@tasks.command("ls")
def list_tasks(
    data: DataOption = None, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Lists the built-in tasks and the orders made of them.

    [bold]Examples[/]

      ella tasks ls

      ella tasks ls --data data/ --json
    """
    from ella_cli.tasks.catalogue import catalogue
    from ella_cli.tasks.orders import ORDERS

    entries = catalogue(data)
    table = Table("name", "kind", "labels", "metric", box=None, pad_edge=False)
    table.add_column("rows from", overflow="fold")
    for entry in entries:
        spec = entry.spec
        labels = str(len(spec.labels)) if spec.labels else "free text"
        table.add_row(spec.name, spec.kind, labels, spec.metric, entry.found)
    orders = Table("order", "tasks", box=None, pad_edge=False)
    for name, names in ORDERS.items():
        orders.add_row(name, ", ".join(names))
    document = {
        "tasks": [{**_facts(entry.spec), "found": entry.found} for entry in entries],
        "orders": {name: list(names) for name, names in ORDERS.items()},
    }
    Output(as_json=as_json, quiet=quiet).result(document, table, "", orders)


@tasks.command("show")
def show_task(
    name: Annotated[str, typer.Argument(help="A built-in task, or a folder of your own.")],
    data: DataOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Shows a task: its facts, its rows in numbers, and one prompt in both variants.

    [bold]Examples[/]

      ella tasks show demo-mood

      ella tasks show agnews --data data/cl_benchmark

      ella tasks show ./my-task
    """
    from ella_cli.tasks import load_task
    from ella_cli.tasks.summary import summarise

    task = load_task(name, data=data)
    _tell(Output(as_json=as_json, quiet=quiet), task, summarise(task), verdict="")


@tasks.command("validate")
def validate_task(
    path: Annotated[Path, typer.Argument(help="A folder with train and test files.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Checks a folder of your own: rows, labels, lengths, and test rows that are also in train.

    Ends with exit code 2, the reason and a sketch of a good folder if it makes no task.

    [bold]Examples[/]

      ella tasks validate ./my-task
    """
    from ella_cli.tasks.summary import check_folder

    task, summary = check_folder(path)
    verdict = "usable, with the warnings above" if summary.warnings else "usable"
    _tell(Output(as_json=as_json, quiet=quiet), task, summary, verdict=verdict)


def _tell(output: Output, task: Task, summary: TaskSummary, *, verdict: str) -> None:
    from ella_cli.tasks import build_prompt

    for words in summary.warnings:
        output.warn(f"{task.spec.name}: {words}")
    row = task.train[0]
    prompts = {
        variant: str(build_prompt(task.spec, row, header=header))
        for variant, header in (("without header", False), ("with header", True))
    }
    document = {
        **_facts(task.spec),
        "origin": task.origin,
        "fingerprint": task.fingerprint,
        **summary.to_json(),
        "example": {"prompts": prompts, "answer": row.answer},
    }
    shown: list[Group | Panel | Table | Text] = [_fact_table(task), _count_table(summary)]
    # A task without a frame has one prompt.
    for variant, prompt in prompts.items():
        if variant == "without header" or prompt != prompts["without header"]:
            body = Text(_shortened(prompt)).append(f" {row.answer}", style="bold green")
            shown.append(Panel(body, title=f"prompt {variant}", title_align="left"))
    if verdict:
        shown.append(Text(f"{task.spec.name}: {verdict}", style="bold"))
    output.result(document, *shown)


def _facts(spec: TaskSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "version": spec.version,
        "title": spec.title,
        "kind": spec.kind,
        "labels": list(spec.labels),
        "instruction": spec.instruction,
        "metric": spec.metric,
        "hub": spec.hub.dataset if spec.hub else None,
        "source": spec.source,
        "licence": spec.licence,
        "citation": spec.citation,
    }


def _fact_table(task: Task) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    facts = _facts(task.spec)
    facts["labels"] = ", ".join(task.spec.labels) or "free text"
    for name, value in (
        *facts.items(),
        ("rows from", task.origin),
        ("data", task.fingerprint[:16]),
    ):
        if value:
            table.add_row(Text(name, style="dim"), str(value))
    return table


def _count_table(summary: TaskSummary) -> Table:
    table = Table("", "train", "test", box=None, pad_edge=False)
    train, test = summary.train, summary.test
    table.add_row("rows", str(train.rows), str(test.rows))
    table.add_row("words, median", str(train.words_median), str(test.words_median))
    table.add_row("words, longest", str(train.words_most), str(test.words_most))
    table.add_row("repeated texts", str(train.repeated), str(test.repeated))
    table.add_row("also in train", "", str(summary.overlap))
    for label, count in train.labels.items():
        table.add_row(f"  {label}", str(count), str(test.labels[label]))
    if summary.always_commonest is not None:
        table.add_row("commonest label scores", "", f"{summary.always_commonest:.0%}")
    return table


def _shortened(prompt: str, most: int = 1200) -> str:
    half = most // 2
    return prompt if len(prompt) <= most else f"{prompt[:half]}\n[...]\n{prompt[-half:]}"
