"""A setting that changes nothing beside the others is spoken of; one that does is not."""

from __future__ import annotations

from typing import Any

import pytest

from ella_cli.config import RunSettings, TrainSettings
from ella_cli.unused import unused_settings


@pytest.mark.parametrize(
    ("settings", "flag", "reason"),
    [
        ({"method": "inclora", "lambda": 3}, "--lambda", "inclora has no penalty"),
        ({"method": "replay", "rho": 3}, "--rho", "replay has no penalty"),
        ({"method": "olora", "rho": 3}, "--rho", "a rule for method ella"),
        ({"lambda": 3, "rho": 3}, "--rho", "--lambda is given as a number"),
        ({"olora_l2": 0.1}, "--olora-l2", "the method is ella"),
        ({"method": "inclora", "replay_share": 0.1}, "--replay-share", "learns no old rows"),
        ({"method": "seqlora", "energy": "sum"}, "--energy", "adds no updates up"),
        ({"method": "single", "decay": 0.5}, "--decay", "adds no updates up"),
        ({"method": "joint", "curvature_rows": 8}, "--curvature-rows", "measures no curvature"),
        ({"curvature_rows": 0, "energy_rank": 8}, "--energy-rank", "no curvature is measured"),
        ({"curvature_rows": 0, "importance": "auto"}, "--importance", "no curvature is measured"),
        ({"max_steps": 5, "num_train_epochs": 2}, "--num-train-epochs", "--max-steps says"),
    ],
)
def test_what_changes_nothing_is_said_with_its_reason(
    settings: dict[str, Any], flag: str, reason: str
) -> None:
    (note,) = unused_settings(RunSettings.model_validate(settings))
    assert note.startswith(f"{flag} changes nothing here: ")
    assert reason in note


@pytest.mark.parametrize("given", [{"energy": "abs"}, {"last": 1}, {"decay": 0.5}])
@pytest.mark.parametrize("method", ["inclora", "olora", "replay"])
def test_what_only_the_past_file_is_made_by_is_said_so(method: str, given: dict[str, Any]) -> None:
    (note,) = unused_settings(RunSettings.model_validate({"method": method, **given}))
    assert note.startswith(f"--{next(iter(given))} changes the run's past file alone: {method} ")


@pytest.mark.parametrize("given", [{"importance": 0.5}, {"energy_rank": 8}])
@pytest.mark.parametrize("by", [{"method": "replay"}, {"energy": "sum"}])
def test_what_is_only_measured_is_said_so(by: dict[str, Any], given: dict[str, Any]) -> None:
    (note,) = unused_settings(TrainSettings.model_validate({**by, **given}))
    assert " changes what is measured alone: " in note


def test_where_no_past_file_is_written_an_energy_changes_nothing() -> None:
    settings = TrainSettings.model_validate({"method": "inclora", "energy": "abs"})
    (note,) = unused_settings(settings)
    assert note == "--energy changes nothing here: inclora does not train by it"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lambda": "0,auto", "rho": 3, "energy": "curvature", "energy_rank": 8, "importance": 0.5},
        {"method": "olora", "lambda": 0.5, "olora_l2": 0.1, "curvature_rows": 0},
        {"method": "inclora", "lambda": 0, "curvature_rows": 16},
        {"optim": "adamw-past"},
        {"energy": "curvature", "optim": "adamw-past"},
        {"method": "replay", "replay_share": 0.1, "num_train_epochs": 2},
        {"method": "seqlora", "weight_decay": 0.1, "optim": "muon", "max_steps": 5},
        # As `--dry-run` prints them: nobody chose these.
        {"method": "single", "olora_l2": 0.0, "replay_share": 0.01, "energy_rank": 64},
    ],
)
def test_what_has_an_effect_is_not_spoken_of(settings: dict[str, Any]) -> None:
    assert unused_settings(TrainSettings.model_validate(settings)) == []


def test_a_command_says_it_and_goes_on(ella: Any) -> None:
    done = ella("run", "--method", "inclora", "--rho", 3, "--order", "1", "-o", "x", "--dry-run")
    assert done.stderr == "warning: --rho changes nothing here: inclora has no penalty\n"
    assert "method: inclora" in done.stdout
