"""Adds adapters to a W_past file, or takes them out: one change, written whole or not at all."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ella_cli.adapter import read_adapter
from ella_cli.config import Energy
from ella_cli.errors import PastError, SettingsError
from ella_cli.files import behind_links, replacing
from ella_cli.locks import waiting
from ella_cli.past.change import Change
from ella_cli.past.curvatures import fit_curvatures
from ella_cli.past.dense_file import write_dense
from ella_cli.past.draft import Draft
from ella_cli.past.factored_file import write_factored
from ella_cli.past.past import Past, read_past, usual_energy
from ella_cli.past.record import EnergyKind, PastTask, Store, smaller_store

StoreChoice = Literal["auto", "factored", "dense"]


@dataclass(frozen=True)
class Accumulated:
    """What one accumulation did.

    Attributes:
        past: the file, as it is now.
        added, dropped: by name; a replaced task is in both.
        factored_bytes: of the factors, None where a dense store no longer knows them.
        notes: what the user should know.
    """

    past: Past
    added: tuple[PastTask, ...]
    dropped: tuple[str, ...]
    was: Store | None
    factored_bytes: int | None
    dense_bytes: int
    file_bytes: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def store_line(self) -> str:
        """Which store, and why, in one line."""
        dense = f"{_size(self.dense_bytes)} dense"
        if self.factored_bytes is None:
            return f"dense, {_size(self.file_bytes)}, whatever the number of tasks"
        factored = f"{_size(self.factored_bytes)} in factors"
        if self.past.store == "factored":
            return f"factored: {factored}, {dense}"
        turned = " (single tasks can no longer be told apart)" if self.was == "factored" else ""
        return f"dense: {dense}, {factored}{turned}"


def accumulate(
    adapters: Sequence[Path],
    path: Path,
    *,
    store: StoreChoice = "auto",
    energy: Energy | None = None,
    last: int | None = None,
    decay: float | None = None,
    drop: Sequence[str] = (),
    replace: Mapping[str, Path] | None = None,
    taken_from: Path | None = None,
    shrink: float | None = None,
    force: bool = False,
) -> Accumulated:
    """Makes the file `path`, or changes it: first drops, then replaces, then adds, in one write.

    Needs neither the base model nor a network. A lock makes two accumulations on one file wait
    for each other; killed at any moment, the file is the old one or the new one.

    Args:
        adapters: PEFT LoRA folders, added in this order.
        path: the W_past file.
        store: auto keeps factors while they are smaller than matrices, matrices afterwards.
        energy: how updates make the energy, `EnergyKind`; None keeps the file's. A new file takes
            the curvature if every adapter has measured it, the sum otherwise.
        last: only the last K tasks count for the energy, 0 for all; None keeps the file's.
        decay: each later task multiplies an update's weight in the energy, 1 for no decay; None
            keeps the file's.
        drop: names of tasks to take out.
        replace: names of tasks to take out, and the adapter that comes in at the same place.
        taken_from: the adapter of the one task that a dense store gives back, if it was moved.
        shrink: λ ≥ 0; adds ΔW / (1 + λ E²) instead of ΔW (makes the store dense).
        force: adds what is in already, a second adapter of a task, or one of another base model.

    Raises:
        AdapterError: an adapter is not usable, in already, or of another base model.
        PastError: the file is damaged, has no such task, or its store cannot do it.
        SettingsError: the wishes contradict each other.
        NonFiniteError: an update holds NaN or infinity.
        StorageError: the disk is full, or the path cannot be written.
    """
    began = time.monotonic()
    path = behind_links(path)
    replace = replace or {}
    outgoing = (*drop, *replace)
    with waiting(path), _one_thread():
        old = read_past(path) if path.exists() else None
        read = [read_adapter(folder) for folder in adapters]
        if old is None and energy is None:
            energy = usual_energy(read)
        kind = energy_of(old, energy, last, decay)
        if shrink is not None and not 0 <= shrink < math.inf:
            raise SettingsError(f"--shrink is {shrink}", hint="give a finite λ of 0 or more")
        if shrink is not None and not (adapters or replace):
            raise SettingsError(
                "--shrink with no adapter to add", hint="what is in already stays as it is"
            )
        if taken_from is not None and len(outgoing) != 1:
            raise SettingsError(
                f"--from names one adapter, for {len(outgoing)} tasks",
                hint="take tasks out of a dense store one at a time",
            )
        draft = Draft(path, old, kind, shrink, force)
        for name in drop:
            draft.drop(name, taken_from)
        for name, folder in replace.items():
            draft.replace(name, read_adapter(folder), taken_from)
        for adapter in read:
            draft.add(adapter)
        change = _with_less_curvature(draft.change())
        chosen = _store(change, old, store)
        if not (adapters or outgoing):
            _refuse_idleness(path, old, kind, chosen)
        with replacing(path) as temporary:
            write = write_factored if chosen == "factored" else write_dense
            write(change, temporary)
            _check_readable(temporary, path)
        past = read_past(path)
    before = set(old.tasks) if old is not None else set()
    return Accumulated(
        past=past,
        added=tuple(task for task in past.tasks if task not in before),
        dropped=outgoing,
        was=None if old is None else old.store,
        factored_bytes=change.factored_bytes if change.origin is None else None,
        dense_bytes=change.dense_bytes,
        file_bytes=path.stat().st_size,
        notes=change.notes,
        seconds=time.monotonic() - began,
    )


def _check_readable(written: Path, path: Path) -> None:
    """What could not be read again must not take the place of what can."""
    try:
        read_past(written)
    except PastError as error:
        raise PastError(
            f"{path} stays as it was, for the new one could not be read: "
            f"{error.message.removeprefix(f'{written}: ')}",
            hint="check the disk; if it comes again, it is a mistake of ella's, so report it",
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes in the calling thread alone: a dense store gives each core modules of its own.

    Where all cores are busy, waiting for torch's other threads costs more than they bring.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def energy_of(
    old: Past | None, energy: Energy | None, last: int | None, decay: float | None
) -> EnergyKind:
    """What the file's energy will be: its own, but for what is asked for.

    Raises:
        SettingsError: a K or a decay that is none.
        PastError: the file cannot have that energy any more.
    """
    known = EnergyKind() if old is None else old.record.energy
    try:
        kind = EnergyKind.asked(
            known.kind if energy is None else energy,
            known.last if last is None else last,
            known.decay if decay is None else decay,
        )
    except ValueError as error:
        raise SettingsError(
            str(error), hint="give --last 1 or more, or 0 for all; --decay between 0 and 1"
        ) from error
    if old is None:
        return kind
    if kind == EnergyKind.asked(known.kind, known.last, known.decay):
        # A decay by 1 was once written down; the file keeps it.
        return known
    if old.store == "dense" and not (kind.is_plain and known.is_plain):
        raise PastError(
            f"{old.path} is dense with the energy {known.words}, which cannot become {kind.words}",
            hint="accumulate the adapters into a new file",
        )
    if not kind.is_plain and any(block.tasks > 1 for block in old.record.blocks):
        raise PastError(
            f"{old.path} was compacted; its tasks' own energies are gone",
            hint="accumulate the adapters into a new file",
        )
    return kind


def _with_less_curvature(change: Change) -> Change:
    """As many eigenvectors of each as fit into the size of W_past as matrices, or as it needs."""
    fitted = fit_curvatures(change.curvatures, change.dense_bytes)
    size = sum(one.nbytes for one in fitted)
    if fitted == change.curvatures and size <= change.dense_bytes:
        return change
    modules = [(one, name, names) for one in fitted for name, names in one.keys.items()]
    of_g, of_c = (
        max(one.entry(names[side]).shape[1] for one, _, names in modules) for side in (0, 1)
    )
    shares = [s for one, name, _ in modules for s in one.record.dropped.get(name, (0.0, 0.0))]
    note = (
        f"curvature of {_tasks(len(fitted))} takes {_size(size)}, W_past as matrices "
        f"{_size(change.dense_bytes)}, so it was cut: of its "
        f"traces {statistics.fmean(shares):.1%} are gone in the mean of the modules, and "
        f"{max(shares):.1%} at most; nothing needs to be done. "
        f"Kept: up to {of_g} eigenvectors of a G and {of_c} of a C"
    )
    both = list(zip(change.curvatures, fitted, strict=True))
    narrowed = [new for old, new in both if new.basis < old.basis]
    if narrowed:
        note += (
            f"; directions of {_tasks(len(narrowed))} in {min(one.basis for one in narrowed)} "
            f"columns instead of {max(one.basis for one in change.curvatures)}"
        )
    fewer = [new.directions for old, new in both if new.directions < old.directions]
    if fewer:
        note += f"; {min(fewer)} directions at least of {_tasks(len(fewer))} instead of all"
    return dataclasses.replace(change, curvatures=fitted, notes=(*change.notes, note))


def _store(change: Change, old: Past | None, choice: StoreChoice) -> Store:
    """
    Raises:
        SettingsError: the store that was asked for cannot hold what was asked for.
    """
    fresh = [task for part in change.parts if part.sign > 0 for task in part.tasks]
    shrunk = any(task.shrink is not None for task in fresh)
    must_be_dense = change.origin is not None or shrunk
    windowed = change.energy.needs_tasks_apart
    if windowed and (must_be_dense or choice == "dense"):
        raise SettingsError(
            "--last needs the tasks apart, which a dense store does not keep",
            hint="use --store factored without --shrink, in a new file if this one is dense",
        )
    if must_be_dense and choice == "factored":
        why = "shrunk updates are no products of factors" if shrunk else f"{old and old.path} is"
        raise SettingsError(
            f"the store must be dense: {why}" + ("" if shrunk else " dense already"),
            hint="leave --store out, or accumulate the adapters into a new file",
        )
    if must_be_dense:
        return "dense"
    if windowed:
        return "factored"
    if choice != "auto":
        return choice
    if old is not None and set(change.tasks) <= set(old.tasks):
        # Nothing came in: no reason to forget the tasks' own factors.
        return "factored"
    return smaller_store(change.factored_bytes, change.dense_bytes)


def _refuse_idleness(path: Path, old: Past | None, kind: EnergyKind, chosen: Store) -> None:
    if old is None or (kind == old.record.energy and chosen == old.store):
        raise SettingsError(
            f"nothing to do for {path}",
            hint="give adapters to add, --drop, --replace, another --energy or --store",
        )


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _size(count: int) -> str:
    """Decimal, as disks are sold: 13.6 MB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} B"
