"""One published setting: its file, its settings, and how far it is from the paper."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ella_cli import files
from ella_cli.config import RunSettings, resolve_settings
from ella_cli.errors import SettingsError

_HERE = Path(__file__).parent
_SETTINGS = _HERE / "settings"

Kind = Literal["deviation", "unknown"]


@dataclass(frozen=True)
class Fact:
    """A deviation is done otherwise than published; an unknown was never published."""

    kind: Kind
    what: str
    recipes: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.kind in get_args(Kind), self.kind

    def holds_for(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.recipes)


@dataclass(frozen=True)
class Recipe:
    """A run.yaml with its facts.

    Attributes:
        name: what `--config` and `ella recipe` call it.
        title: the file's first line: model and order.
        text: the file as it is.
        settings: what the file sets, by setting.
    """

    name: str
    path: Path
    title: str
    text: str
    settings: Mapping[str, Any]
    facts: tuple[Fact, ...]

    @property
    def deviations(self) -> tuple[str, ...]:
        return tuple(fact.what for fact in self.facts if fact.kind == "deviation")

    @property
    def unknowns(self) -> tuple[str, ...]:
        return tuple(fact.what for fact in self.facts if fact.kind == "unknown")

    def resolved(self) -> RunSettings:
        """All settings, those the file does not name at their defaults."""
        return resolve_settings(RunSettings, {}, self.path)


def recipe_names() -> tuple[str, ...]:
    """Sorted."""
    return tuple(sorted(path.stem for path in _SETTINGS.glob("*.yaml")))


def find_recipe(name: str) -> Recipe:
    """
    Raises:
        SettingsError: no recipe has that name.
    """
    if name not in recipe_names():
        near = difflib.get_close_matches(name, recipe_names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise SettingsError(
            f"no recipe is called {name!r}", hint=f"{hint}`ella recipe ls` lists them"
        )
    path = _SETTINGS / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    return Recipe(
        name=name,
        path=path,
        title=text.splitlines()[0].removeprefix("# ").split(":")[0],
        text=text,
        settings=yaml.safe_load(text),
        facts=tuple(fact for fact in _facts() if fact.holds_for(name)),
    )


def copy_recipe(name: str, target: Path, *, force: bool = False) -> Recipe:
    """Writes the recipe's file to `target`, whole or not at all.

    Raises:
        SettingsError: no such recipe, or `target` is there and `force` is not given.
        StorageError: `target` cannot be written.
    """
    recipe = find_recipe(name)
    if target.exists() and not force:
        raise SettingsError(
            f"{target} is there already", hint="give another name, or --force to replace it"
        )
    files.write_text(target, recipe.text)
    return recipe


def settings_file(named: Path | None) -> Path | None:
    """What `--config` means: a file, or the file of a recipe of that name where there is none."""
    if named is None or named.exists() or str(named) not in recipe_names():
        return named
    return find_recipe(str(named)).path


@functools.cache
def _facts() -> tuple[Fact, ...]:
    document = yaml.safe_load((_HERE / "facts.yaml").read_text(encoding="utf-8"))
    return tuple(Fact(one["kind"], one["what"], tuple(one["recipes"])) for one in document)
