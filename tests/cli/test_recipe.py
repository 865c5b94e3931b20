"""`ella recipe`, and `ella run --config RECIPE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ella_cli.recipes import recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_dry_run_takes_every_recipe(ella: Any, name: str) -> None:
    done = ella("run", "--config", name, "-o", "run", "--dry-run", "--json")
    resolved = json.loads(done.stdout)["settings"]
    shown = json.loads(ella("recipe", "show", name, "--json").stdout)
    assert {key: resolved[key] for key in shown["settings"]} == shown["settings"]


def test_a_copy_runs_as_the_recipe_does(ella: Any, tmp_path: Path) -> None:
    ella("recipe", "cp", "t5-large-order4", "run.yaml")
    own, named = (
        ella("run", "--config", config, "-o", "run", "--dry-run").stdout
        for config in ("run.yaml", "t5-large-order4")
    )
    assert own == named
    assert yaml.safe_load(own)["order"] == "4"
    again = ella("recipe", "cp", "t5-large-order4", "run.yaml", code=2)
    assert "run.yaml is there already" in again.stderr
    assert "--force" in again.stderr


def test_show_lists_deviations_and_unknowns(ella: Any) -> None:
    shown = ella("recipe", "show", "llama-3.1-8b-order1").stdout
    assert "known deviations" in shown
    assert "1e-3 for the first task" in shown
    assert "unknown" in shown
    assert set(recipe_names()) <= set(ella("recipe", "ls").stdout.split())


def test_a_name_that_is_neither_file_nor_recipe_is_refused(ella: Any) -> None:
    done = ella("run", "--config", "t5-large-order9", "-o", "run", "--dry-run", code=2)
    assert "t5-large-order9" in done.stderr
