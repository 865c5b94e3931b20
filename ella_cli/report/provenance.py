"""Where a run came from: its command, settings, versions and fingerprints.

Taken from `run.json` and the manifests as they are: a setting that this file has never heard of is
shown all the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from ella_cli.report.document import Part, Table, Words
from ella_cli.report.results import RunResults

# Settings whose text is longer are cut in tables; the JSON keeps them whole.
_LONGEST_VALUE = 160


def provenance_parts(run: RunResults) -> tuple[Part, ...]:
    """Settings, versions, fingerprints and the command, as `run.json` and the manifests say."""
    flat = [(k, v) for k, v in _flat(run.settings) if k not in _elsewhere(run)]
    parts: list[Part] = []
    command = command_words(run)
    if command:
        parts.append(Words(f"made by: {command}"))
    if flat:
        parts.append(
            Table(
                f"settings of {run.name}",
                ("setting", "value"),
                tuple((k, v[:_LONGEST_VALUE]) for k, v in flat),
            )
        )
    if run.stages:
        parts.append(_data_table(run))
    return tuple(parts)


def command_words(run: RunResults) -> str:
    command = run.settings.get("command") or run.document.get("command")
    if isinstance(command, list | tuple):
        return " ".join(str(word) for word in command)
    return str(command) if command else ""


def _elsewhere(run: RunResults) -> set[str]:
    return {key for key in run.settings if key.startswith("command")}


def _data_table(run: RunResults) -> Table:
    rows = []
    for stage in run.stages:
        data = stage.manifest.get("data") or {}
        base = stage.manifest.get("base") or {}
        past = stage.manifest.get("past") or {}
        rows.append(
            (
                stage.task,
                stage.rank,
                stage.scale,
                stage.train_rows,
                _short(data.get("fingerprint")),
                _short(base.get("fingerprint")),
                _short(past.get("digest")),
            )
        )
    return Table(
        title="what each task was trained on",
        columns=("task", "rank", "scale", "training rows", "data", "base model", "past"),
        rows=tuple(rows),
        note="the last three are fingerprints, shortened; the JSON has them whole",
    )


def _short(fingerprint: object) -> str | None:
    return None if fingerprint is None else str(fingerprint)[:12]


def _flat(document: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs.extend(_flat(value, f"{name}."))
        elif isinstance(value, list | tuple):
            pairs.append((name, ", ".join(str(v) for v in value)))
        else:
            pairs.append((name, "–" if value is None else str(value)))
    return pairs


def base_model(run: RunResults) -> str:
    for stage in run.stages:
        base = stage.manifest.get("base")
        if isinstance(base, Mapping) and "model" in base:
            return str(base["model"])
    recorded = run.document.get("base_model")
    if isinstance(recorded, Mapping):
        recorded = recorded.get("model")
    return str(recorded) if recorded else "not recorded"
