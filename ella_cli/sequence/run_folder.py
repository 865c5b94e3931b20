"""A run's folder and whose it is: claimed by one run, gone on with by the same, read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pydantic import ValidationError

from ella_cli import files, locks, processes
from ella_cli.adapter import Adapter, read_adapter
from ella_cli.config import FREE, RunSettings, optim_in_effect
from ella_cli.errors import SettingsError
from ella_cli.manifest import MANIFEST
from ella_cli.run_paths import RunPaths
from ella_cli.training.manifest import versions
from ella_cli.training.methods import METHODS, Method
from ella_cli.wording import plain

FORMAT = 1

# Hashes say nothing to people.
_FACTS = {
    "data_fingerprints": "its tasks' rows",
    "train_digests": "its tasks' train rows",
    "task_digests": "its tasks' instructions, labels or metrics",
    "tokenizer": "its tokenizer's rules",
}


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """One run: its paths, its record and its finished stages."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Keeps the folder to this command, and clears away what a killed one left.

        Raises:
            SettingsError: another command is at work here.
            StorageError: the folder cannot be written.
        """
        with locks.sole(self.lock, self.path):
            if processes.is_main():
                # Of a stage that was being written when a command was killed; none is written now.
                files.clear_left_behind(self.stages)
            yield

    def adapter(self, index: int, name: str) -> Adapter | None:
        """The adapter of a finished stage, None before it is trained."""
        folder = self.stage(index, name)
        return read_adapter(folder) if (folder / MANIFEST).is_file() else None

    def finished(self, names: Sequence[str], *, alone: bool = False) -> list[Adapter]:
        """The adapters of the stages trained so far, in order.

        Args:
            names: of all stages.
            alone: whether each stands by itself.

        Raises:
            SettingsError: a stage is not there, but one that was trained after it is.
        """
        found = [self.adapter(index, name) for index, name in enumerate(names)]
        count = found.index(None) if None in found else len(found)
        later = next((one for one in found[count:] if one is not None), None)
        if later is not None:
            raise SettingsError(
                f"{self.stage(count, names[count])} is not there, but {later.path.name}, which "
                "comes after it, is",
                hint="`ella run` with its settings trains it"
                if alone
                else "put it back, or delete all later stages and wpast.safetensors; then the same "
                "command trains them anew",
            )
        return [one for one in found[:count] if one is not None]

    def read(self) -> dict[str, Any]:
        """The record, with `settings`, `base` and `data_fingerprints`, empty where not told.

        Raises:
            SettingsError: there is none, or it is not the record of a run.
            StorageError: it cannot be read.
        """
        if not self.record.is_file():
            raise SettingsError(
                f"{self.path} holds no run.json", hint="name a folder made by `ella run`"
            )
        document = files.read_json(self.record)
        found = isinstance(document, dict) and isinstance(document.get("settings"), dict)
        known = {"base": {}, "data_fingerprints": {}, **document} if found else {}
        if not all(isinstance(known.get(name), dict) for name in ("base", "data_fingerprints")):
            raise SettingsError(
                f"{self.record} is not the record of a run",
                hint="it was changed by hand; restore it, or give another folder",
            )
        return known

    def settings(self) -> RunSettings:
        """Those of the record.

        Raises:
            SettingsError: as `read`, or one of them is unknown or out of range.
            StorageError: it cannot be read.
        """
        # An older ella named no optimizer, and had AdamW.
        settings = {"optim": "adamw", **self.read()["settings"]}
        try:
            return RunSettings.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise SettingsError(
                f"{self.record}: {name.replace('_', '-')}: {plain(first)}",
                hint="it is of another version of ella, or was changed by hand",
            ) from error

    def _check_free(self) -> None:
        """Of a folder without a record: whether a run would meet files that are not its own."""
        others = [self.path / name for name in (MANIFEST, "adapter_config.json", "config.json")]
        own = [self.stages, self.scores, self.past, self.results, self.report]
        found = next((one for one in (*others, *own) if one.exists()), None)
        if found is not None:
            raise SettingsError(
                f"{self.path} is no run's folder, and has {found.name} already",
                hint="give a new --output-dir",
            )

    def claim(
        self, settings: RunSettings, order: Sequence[str], command: str, facts: Mapping[str, Any]
    ) -> None:
        """Writes run.json, or finds that the folder already belongs to this very run.

        A run whose order only goes on after what is there is this run too, and so is one that goes
        on otherwise from the last trained stage: its record is then of the new order.

        Args:
            order: names of the tasks.
            facts: fingerprints by which a changed base or changed rows are noticed.

        Raises:
            SettingsError: it belongs to a run with other settings, another base or other rows, or
                holds other things.
        """
        ours = settings.model_dump(mode="json", by_alias=True)
        document = {
            "format": FORMAT,
            "command": command,
            "order": list(order),
            "method": settings.method,
            "settings": ours,
            **facts,
            "versions": versions(),
        }
        if not self.record.is_file():
            self._check_free()
            files.write_json(self.record, document)
            return
        theirs = self.read()
        self._check_same(ours, facts, _gone_on(theirs, document, self._trained(theirs)))
        if theirs.get("order") not in (None, document["order"]):
            files.write_json(self.record, document)

    def _trained(self, record: Mapping[str, Any]) -> int:
        """How many leading stages of the record's order are there."""
        names = record["order"] if isinstance(record.get("order"), list) else []
        there = ((self.stage(i, name) / MANIFEST).is_file() for i, name in enumerate(names))
        return sum(takewhile(bool, there))

    def _check_same(
        self, ours: Mapping[str, Any], facts: Mapping[str, Any], theirs: Mapping[str, Any]
    ) -> None:
        """
        Args:
            ours: settings of the run to be.
            theirs: the record that is there.

        Raises:
            SettingsError: they are of two runs.
        """
        before = {
            "processes": 1,
            # What an older ella measured counts in full.
            "importance": 1.0,
            "optim": "adamw",
            # An older ella did not note how prompts, tokens and scores are made, nor what auto
            # became, nor train rows by themselves.
            "train_digests": facts.get("train_digests"),
            "task_digests": facts.get("task_digests"),
            "precision": facts.get("precision"),
            "tokenizer": facts.get("tokenizer"),
            **theirs["settings"],
            **{n: theirs[n] for n in facts if n in theirs},
        }
        # Where it is known what the weights were, it does not matter how that was asked for.
        free = FREE | ({"dtype"} if "precision" in theirs else set())
        if optim_in_effect(ours) == optim_in_effect(theirs["settings"]):
            free |= {"optim"}
        for name, value in {**ours, **facts}.items():
            if name not in free and before.get(name) != value:
                if name in _FACTS:
                    raise SettingsError(
                        f"{self.path} holds another run: {_FACTS[name]} have changed since",
                        hint="give another --output-dir, or put them back as they were",
                    )
                raise SettingsError(
                    f"{self.path} holds another run: its {name.replace('_', '-')} is "
                    f"{_short(before.get(name))}, now it is {_short(value)}",
                    hint="give another --output-dir, or the settings of run.json to go on",
                )


def _gone_on(theirs: Mapping[str, Any], ours: Mapping[str, Any], trained: int) -> Mapping[str, Any]:
    """The record `theirs` as it were if its order went on as that of `ours` does.

    As it is where that is no continuation, or all tasks are learned at once.

    Args:
        trained: how many of its stages are there; what comes after them may be dropped.
    """
    held, order = theirs.get("order"), ours["order"]
    if not isinstance(held, list) or METHODS[ours["method"]].joint:
        return theirs
    if held != order[: len(held)] and trained:
        held = held[:trained]
    if held != order[: len(held)]:
        return theirs
    settings = {**theirs["settings"], "order": ours["settings"]["order"]}
    given = settings.get("lambda")
    if isinstance(given, list) and isinstance(ours["settings"]["lambda"], list):
        kept = given[: len(held)]
        settings["lambda"] = [*kept, *ours["settings"]["lambda"][len(kept) :]]
    gone_on = {**theirs, "settings": settings}
    for name in ("data_fingerprints", "train_digests", "task_digests"):
        if isinstance(known := theirs.get(name), dict):
            gone_on[name] = {
                task: known.get(task) if task in held else ours[name][task] for task in order
            }
    return gone_on


def stage_names(method: Method, order: Sequence[str]) -> list[str]:
    """What is trained one after another: the tasks, or all of them as one."""
    return ["joint"] if method.joint else list(order)


def method_of(settings: RunSettings) -> Method:
    return METHODS[settings.method]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
