"""`ella recipe`: the published settings, to look at, to copy, to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ella_cli.cli.output import JsonOption, Output, QuietOption

if TYPE_CHECKING:
    from ella_cli.recipes import Recipe

NameArgument = Annotated[str, typer.Argument(help="As `ella recipe ls` shows it.")]

recipe = typer.Typer(
    help="List, show and copy the published settings.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@recipe.command("ls")
def list_recipes(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the recipes: settings of published runs, each a run.yaml.

    [bold]Examples[/]

      ella recipe ls

      ella run --config t5-large-order1 --data data -o runs/t5
    """
    from rich.table import Table

    from ella_cli.recipes import find_recipe, recipe_names

    found = [find_recipe(name) for name in recipe_names()]
    table = Table("name", "of", "λ", "deviations", "unknowns", box=None, pad_edge=False)
    for one in found:
        counts = (str(len(one.deviations)), str(len(one.unknowns)))
        table.add_row(one.name, one.title, f"{one.settings['lambda']:g}", *counts)
    Output(as_json, quiet).result({"recipes": [_facts(one) for one in found]}, table)


@recipe.command("show")
def show_recipe(
    name: NameArgument, as_json: JsonOption = False, quiet: QuietOption = False
) -> None:
    """Show a recipe's file, what it does otherwise than the paper, and what is not known.

    [bold]Examples[/]

      ella recipe show t5-large-order1
    """
    from rich.text import Text

    from ella_cli.recipes import find_recipe

    one = find_recipe(name)
    shown: list[Any] = [one.text]
    for title, facts in (("known deviations", one.deviations), ("unknown", one.unknowns)):
        shown.append(Text(title, style="bold"))
        shown += [Text(f"- {fact}") for fact in facts]
        shown.append("")
    Output(as_json, quiet).result(_facts(one), *shown[:-1])


@recipe.command("cp")
def copy(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(help="The run.yaml to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a recipe's file, to change it.

    [bold]Examples[/]

      ella recipe cp t5-large-order1 run.yaml
    """
    from ella_cli.recipes import copy_recipe

    copied = copy_recipe(name, file, force=force)
    output = Output(as_json, quiet)
    if as_json:
        output.result({"file": str(file), **_facts(copied)})
    output.say(f"wrote {file}; next: ella run --config {file} --data DATA -o RUN")


def _facts(one: Recipe) -> dict[str, Any]:
    return {
        "name": one.name,
        "title": one.title,
        "settings": dict(one.settings),
        "deviations": list(one.deviations),
        "unknowns": list(one.unknowns),
    }
