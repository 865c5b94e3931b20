"""Every shipped recipe is a run.yaml that resolves, with its distance from the paper beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ella_cli.config import RunSettings
from ella_cli.errors import SettingsError, StorageError
from ella_cli.recipes import copy_recipe, find_recipe, recipe_names, settings_file
from ella_cli.recipes.recipe import _facts
from ella_cli.tasks import ORDERS, resolve_order

MODELS = ("t5-large", "llama-3.1-8b")
PUBLISHED = ("1", "2", "3", "4", "5", "6", "trace")


def test_there_is_one_for_each_model_and_each_published_order() -> None:
    found = {
        (name.rsplit("-", 1)[0], find_recipe(name).resolved().order) for name in recipe_names()
    }
    assert found == {(model, order) for model in MODELS for order in PUBLISHED}


@pytest.mark.parametrize("name", recipe_names())
def test_its_settings_are_those_of_the_protocol(name: str) -> None:
    recipe = find_recipe(name)
    settings = recipe.resolved()
    assert resolve_order(settings.order) == ORDERS[settings.order]
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    assert (batch, settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (
        64,
        8,
        32,
        0.1,
    )
    assert settings.target_modules == (("q", "v") if "t5" in name else ("q_proj", "v_proj"))
    assert settings.validation == 0
    # Whoever reads the file reads the settings that matter, not our defaults.
    assert recipe.settings.keys() <= {*RunSettings.model_fields, "lambda"}
    assert recipe.deviations
    assert recipe.unknowns


def test_recipes_of_one_model_and_benchmark_differ_in_their_order_alone() -> None:
    for model in MODELS:
        plain = [dict(find_recipe(f"{model}-order{i}").settings) for i in range(1, 7)]
        assert [one.pop("order") for one in plain] == list("123456")
        assert all(one == plain[0] for one in plain)


def test_every_fact_holds_for_some_recipe() -> None:
    for fact in _facts():
        assert any(fact.holds_for(name) for name in recipe_names()), fact


def test_a_copy_is_the_file_and_never_replaces_one_unasked(tmp_path: Path) -> None:
    target = tmp_path / "run.yaml"
    copy_recipe("t5-large-order1", target)
    assert yaml.safe_load(target.read_text())["order"] == "1"
    with pytest.raises(SettingsError, match="is there already"):
        copy_recipe("t5-large-order2", target)
    assert yaml.safe_load(target.read_text())["order"] == "1"
    copy_recipe("t5-large-order2", target, force=True)
    assert yaml.safe_load(target.read_text())["order"] == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        copy_recipe("t5-large-order2", tmp_path / "file" / "run.yaml")


def test_a_name_is_taken_for_a_recipe_only_where_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("t5-large-order1")
    assert settings_file(name) == find_recipe("t5-large-order1").path
    name.write_text("seed: 1\n")
    assert settings_file(name) == name
    assert settings_file(Path("elsewhere.yaml")) == Path("elsewhere.yaml")
    assert settings_file(None) is None


def test_an_unknown_name_says_what_is_near() -> None:
    with pytest.raises(SettingsError) as caught:
        find_recipe("t5-large-order7")
    assert "t5-large-order" in caught.value.hint
