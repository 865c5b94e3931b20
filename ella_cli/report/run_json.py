"""Every number of the report as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ella_cli.report.groups import Group, groups_of
from ella_cli.report.metrics import METRICS, bootstrap, metric_values
from ella_cli.report.results import RunResults
from ella_cli.report.signs import balances, ratio, signs

FORMAT = 1


def report_json(
    runs: Sequence[RunResults], pasts: Mapping[Path, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """`pasts` gives, for a run's path, what `ella inspect` computed of its W_past."""
    pasts = pasts or {}
    return {
        "format": FORMAT,
        "runs": [_run(run, pasts.get(run.path)) for run in runs],
        "comparison": [_group(group) for group in groups_of(runs)],
    }


def _run(run: RunResults, past: Mapping[str, Any] | None) -> dict[str, Any]:
    intervals = bootstrap(run)
    return {
        "name": run.name,
        "method": run.method,
        "lambda": run.lam,
        "seed": run.seed,
        "decode": run.decode,
        "test_rows": dict(run.test_rows),
        "validation": run.document.get("validation"),
        "header": run.document.get("header"),
        "order": list(run.accuracy.order),
        "matrix": [list(row) for row in run.accuracy.matrix],
        "base": _optional(run.accuracy.base),
        "single": _optional(run.accuracy.single),
        "figures": {
            key: {"value": value, "interval_95": asdict(i) if (i := intervals[key]) else None}
            for key, value in metric_values(run).items()
        },
        "forgetting_is_lower_bound": bool(run.accuracy.unseen_by_forgetting),
        "stages": [
            {
                **asdict(balance),
                "curves": {**asdict(stage.curves), "penalty_to_ce": list(ratio(stage))},
                "manifest": dict(stage.manifest),
            }
            for balance, stage in zip(balances(run), run.stages, strict=True)
        ],
        "warnings": [asdict(sign) for sign in signs(run)],
        "past": None if past is None else dict(past),
        "settings": dict(run.settings),
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "label": group.name,
        "runs": [run.name for run in group.runs],
        "settings_known": group.settings_known,
        "figures": {m.key: asdict(s) if (s := group.spread(m)) else None for m in METRICS},
    }


def _optional(row: tuple[float | None, ...] | None) -> list[float | None] | None:
    return None if row is None else list(row)
