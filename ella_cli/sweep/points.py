"""The runs of a sweep: every λ with every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ella_cli.config import FREE, RunSettings, optim_in_effect, resolve_settings
from ella_cli.errors import SettingsError
from ella_cli.sequence.run import check_run
from ella_cli.tasks import resolve_order
from ella_cli.training.methods import METHODS

# What may differ between the runs of one sweep, or between the machines that share it.
_OWN = FREE | {"lam", "seed", "data"}


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        lam: λ as it was asked for, in its shortest form: "0", "1000", "auto".
        seed: the run's seed.
    """

    lam: str
    seed: int

    @property
    def name(self) -> str:
        return f"lambda-{self.lam}-seed-{self.seed}"

    @property
    def number(self) -> float | None:
        """λ as a number, None if each task's is chosen by a rule."""
        return _number(self.lam)

    def settings(self, base: RunSettings) -> RunSettings:
        """Those of the run.

        Raises:
            SettingsError: λ is no number, or a word that runs do not know.
        """
        value: Any = self.lam if self.number is None else self.number
        flags = base.model_dump() | {"lam": value, "seed": self.seed}
        try:
            return resolve_settings(RunSettings, flags)
        except SettingsError as error:
            raise SettingsError(
                f"--lambda {self.lam} is no λ that a run takes: {error.message}",
                hint="give numbers from 0 on and auto, joined by commas, such as 0,1e3,auto",
            ) from error


def usual_lambdas(base: RunSettings) -> str:
    """λ worth trying where none are named: what is penalised decides their size."""
    if base.method == "olora":
        # The second weight stands beside a first.
        return "0.05,0.5,5" if base.olora_l2 else "0,0.05,0.5,5"
    # With curvature, auto is 10.
    return "0,1,100,auto" if base.protects == "curvature" else "0,1e3,1e4,1e5,auto"


def points_of(lambdas: str | None, seeds: int, base: RunSettings) -> tuple[Point, ...]:
    """Every λ of the list with every seed; all λ of one seed come first.

    Args:
        lambdas: such as "0,1e3,auto"; None for the usual ones.
        seeds: how many, from the settings' own seed on.

    Raises:
        SettingsError: a λ that runs do not take, one twice, none, a method without a penalty, or
            settings with which a later stage would fail.
    """
    if METHODS[base.method].penalty is None:
        raise SettingsError(
            f"{base.method} has no penalty, so there is no λ to sweep",
            hint="give --method ella or olora; λ = 0 is inclora",
        )
    lambdas = usual_lambdas(base) if lambdas is None else lambdas
    asked = [_shortest(part.strip()) for part in lambdas.split(",") if part.strip()]
    if not asked:
        raise SettingsError("--lambda names no λ", hint="give such as 0,1e3,auto")
    twice = sorted({lam for lam in asked if asked.count(lam) > 1})
    if twice:
        raise SettingsError(f"--lambda names {twice[0]} twice", hint="name each λ once")
    order = resolve_order(base.order)
    points = tuple(Point(lam, base.seed + i) for i in range(seeds) for lam in asked)
    for point in points[: len(asked)]:
        check_run(point.settings(base), order)
    return points


def check_held_out(base: RunSettings) -> None:
    """
    Raises:
        SettingsError: no validation rows.
    """
    if base.validation < 1:
        raise SettingsError(
            "a sweep chooses λ, and must not choose it on test rows",
            hint="hold rows out of train with --validation N, such as --validation 100",
        )


def sweep_name(base: RunSettings) -> str:
    """Equal for the same sweep, on whatever machine: a name from all that decides its results."""
    facts = _deciding(base, _OWN)
    if base.importance == 1:
        # As in sweeps begun before there was one.
        del facts["importance"]
    return "ella-" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def settings_digest(base: RunSettings) -> str:
    """Equal for sweeps that may share a study of any name: paths may differ between machines."""
    facts = _deciding(base, {*_OWN, "model", "order"})
    facts["tasks"] = [Path(task).name for task in resolve_order(base.order)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _deciding(base: RunSettings, others: Iterable[str]) -> dict[str, Any]:
    facts = base.model_dump(mode="json", exclude=set(others))
    # Where `adamw-past` has nothing to turn to it is AdamW, and was its default.
    return facts | {"optim": optim_in_effect(base.model_dump(by_alias=True) | {"lambda": None})}


def lambda_order(lams: Sequence[str]) -> list[str]:
    """Numbers by size, then words."""
    return sorted(lams, key=lambda lam: (_number(lam) is None, _number(lam) or 0.0, lam))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shortest(text: str) -> str:
    number = _number(text)
    if number is None:
        return text
    # The fewest digits that are read back as the same number.
    exact = repr(number).removesuffix(".0")
    short = f"{number:g}"
    return short if float(short) == number else exact
