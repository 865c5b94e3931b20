"""Flags made from settings: a field of `ella_cli.config` is a flag, its description the help.

A command names the settings class it takes; its function gets them resolved from defaults, the
YAML file and the flags, in that order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from ella_cli.config import Settings, resolve_settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of settings, or a recipe (`ella recipe ls`); flags win over it.",
        metavar="FILE",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")
]


def takes_settings(
    kind: type[Settings], *, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for every field of `kind`, and calls it with `settings=`.

    The command keeps its other parameters; `config` is added to them. Fields in `without` get no
    flag: the command sets them itself.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        fields = {name: info for name, info in kind.model_fields.items() if name not in without}
        flags = {name: _flag(name, info) for name, info in fields.items()}
        config = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption
        )

        @functools.wraps(command)
        def shell(**given: Any) -> None:
            values = {name: given.pop(name) for name in flags}
            settings = resolve_settings(kind, values, _settings_file(given.pop("config")))
            command(settings=settings, **given)

        kept = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.items()
            if name != "settings"
        ]
        parameters = [*kept, config, *flags.values()]
        shell.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        shell.__annotations__ = {one.name: one.annotation for one in parameters}
        return shell

    return decorate


def _settings_file(named: Path | None) -> Path | None:
    if named is None:
        return None
    from ella_cli.recipes import settings_file

    return settings_file(named)


def _flag(name: str, info: Any) -> inspect.Parameter:
    extra = info.json_schema_extra
    flag = extra.get("flag", f"--{name.replace('_', '-')}")
    kind = _plain(info.annotation)
    default = info.default
    shown = "" if default is None else f"  [dim]\\[{_words(default)}][/]"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{info.description}{shown}",
        rich_help_panel=extra["panel"],
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _plain(annotation: Any) -> Any:
    """The type a flag is read as: without None; words where it may be one of several."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        kinds = [one for one in get_args(annotation) if one is not type(None)]
        annotation = kinds[0] if len(kinds) == 1 else str
    return str if get_origin(annotation) is tuple else annotation


def _words(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)
