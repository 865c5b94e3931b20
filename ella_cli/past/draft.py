"""A past being edited in memory: who comes in, who goes out, and whether that may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ella_cli.adapter import Adapter, read_adapter
from ella_cli.adapter.curvature import Curvature
from ella_cli.adapter.curvature_file import read_curvature
from ella_cli.errors import AdapterError, PastError, SettingsError
from ella_cli.past.change import Change, Part, parts_of
from ella_cli.past.curvatures import measured_anew
from ella_cli.past.dense import DenseStore
from ella_cli.past.factored import Block
from ella_cli.past.past import Past
from ella_cli.past.record import Base, EnergyKind, PastTask
from ella_cli.past.task import base_of, block_record, objections, task_of


@dataclass(frozen=True, eq=False)
class _Slot:
    """A place in the order of tasks; the part is None where a dense sum holds it already."""

    tasks: tuple[PastTask, ...]
    part: Part | None


@dataclass(eq=False)
class Draft:
    """The next contents of the file `path`, started from the past that it holds now."""

    path: Path
    old: Past | None
    energy: EnergyKind
    shrink: float | None = None
    force: bool = False
    notes: list[str] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)
    _given_back: list[Part] = field(default_factory=list)
    _base: Base = field(default_factory=Base)
    _curvatures: dict[str, Curvature] = field(default_factory=dict)  # by adapter digest

    def __post_init__(self) -> None:
        if self.old is None:
            return
        self._base = self.old.base
        self._curvatures = {one.record.adapter: one for one in self.old.curvatures}
        if self.old.store == "dense":
            self._slots = [_Slot((task,), None) for task in self.old.tasks]
        else:
            self._slots = [_Slot(part.tasks, part) for part in parts_of(self.old)]

    @property
    def tasks(self) -> tuple[PastTask, ...]:
        return tuple(task for slot in self._slots for task in slot.tasks)

    def add(self, adapter: Adapter) -> None:
        """
        Raises:
            AdapterError: it is in already, its task's name is, or its base model is another.
            NonFiniteError: a factor holds NaN or infinity.
        """
        if not self._only_measured_since(adapter):
            self._slots.append(self._admitted(adapter))

    def drop(self, name: str, folder: Path | None = None) -> None:
        """
        Args:
            name: the task to take out.
            folder: its adapter, needed by a dense store; by default where it lay when added.

        Raises:
            PastError: no such task, or it cannot be told from the others any more.
            AdapterError: a dense store's adapter is gone, or is not the one that was added.
        """
        index = self._index(name)
        self._take_out(index, folder)
        del self._slots[index]

    def replace(self, name: str, adapter: Adapter, folder: Path | None = None) -> None:
        """As `drop`, then `add` in the same place.

        Raises:
            SettingsError: it is to be shrunk, and others come after it. A factored store would
                shrink it by the tasks before it, a dense one by all.
        """
        index = self._index(name)
        if self.shrink is not None and index + 1 < len(self._slots):
            raise SettingsError(
                f"--shrink with --replace {name}, but {name} is not the last task",
                hint=f"--drop {name}, and add the new adapter at the end",
            )
        self._take_out(index, folder)
        outgoing = self._slots.pop(index)
        # A folder's name says less than the name it is given here.
        named = outgoing.tasks[0].name if adapter.manifest is None else None
        self._slots.insert(index, self._admitted(adapter, named))

    def change(self) -> Change:
        origin = None if self.old is None else self.old.contents
        held = {task.digest for task in self.tasks}
        # As the tasks come; one may have been replaced, or measured late.
        digests = dict.fromkeys(task.digest for task in self.tasks)
        curvatures = [self._curvatures[one] for one in digests if one in self._curvatures]
        self._note_unmeasured(held)
        self._note_estimates(curvatures)
        return Change(
            base=self._base,
            energy=self.energy,
            tasks=self.tasks,
            parts=(*self._given_back, *(slot.part for slot in self._slots if slot.part)),
            origin=origin if isinstance(origin, DenseStore) else None,
            curvatures=tuple(curvatures),
            notes=tuple(self.notes),
        )

    def _only_measured_since(self, adapter: Adapter) -> bool:
        """Whether the adapter is in already, and all that is new is its curvature."""
        twin = next((task for task in self.tasks if task.digest == adapter.digest), None)
        if twin is None or self.force:
            return False
        held, found = self._curvatures.get(adapter.digest), read_curvature(adapter)
        if found is None or not measured_anew(held, found):
            return False
        self._curvatures[adapter.digest] = found
        done = "replaced by the one measured since" if held is not None else "added"
        self.notes.append(f"{twin.name} is in already; its curvature was {done}")
        return True

    def _note_unmeasured(self, held: set[str]) -> None:
        wanted = self.energy.kind == "curvature" or held & set(self._curvatures)
        missing = [task.name for task in self.tasks if task.digest not in self._curvatures]
        if wanted and missing:
            self.notes.append(
                f"{', '.join(missing)}: no curvature, so --energy curvature does not protect it; "
                "`ella measure ADAPTER --task NAME` makes it, then accumulate the adapter again"
            )

    def _note_estimates(self, curvatures: Sequence[Curvature]) -> None:
        """One λ weighs all of them, so it should mean the same for all."""
        records = [curvature.record for curvature in curvatures]
        others = [
            one.task
            for one in records
            if (one.coherence, one.shrinkage) != (records[-1].coherence, records[-1].shrinkage)
        ]
        if others:
            self.notes.append(
                f"the curvature of {', '.join(others)} was measured in another way than that of "
                f"{records[-1].task}, and one λ weighs both; `ella measure` makes it anew, then "
                "accumulate the adapter again"
            )

    def _index(self, name: str) -> int:
        for index, slot in enumerate(self._slots):
            if any(task.name == name for task in slot.tasks):
                return index
        held = ", ".join(task.name for task in self.tasks) or "none"
        raise PastError(f"{self.path} has no task {name}", hint=f"it has: {held}")

    def _take_out(self, index: int, folder: Path | None) -> None:
        slot = self._slots[index]
        task = slot.tasks[0]
        if len(slot.tasks) > 1:
            raise PastError(
                f"{task.name} was compacted together with {len(slot.tasks) - 1} other tasks",
                hint="accumulate the adapters that should stay into a new file",
            )
        if slot.part is not None:
            return
        if self.energy.kind == "rss":
            raise PastError(
                f"a dense rss energy has lost what is small beside {task.name}",
                hint="accumulate the adapters that should stay into a new file",
            )
        decays = self.energy.decay is not None and not self.energy.is_plain
        if task.shrink is not None or decays:
            why = "was shrunk by its past" if task.shrink is not None else "has decayed"
            raise PastError(
                f"{task.name} {why}; a dense store cannot tell what to take out",
                hint="accumulate the adapters that should stay into a new file",
            )
        adapter = self._added_from(task, folder)
        block = Block(adapter.file, adapter.sources)
        self._given_back.append(Part((task,), block, block_record(adapter), sign=-1))
        self.notes.append(f"{task.name} was taken out of a dense sum, exact to fp32 rounding")

    def _added_from(self, task: PastTask, folder: Path | None) -> Adapter:
        where = folder if folder is not None else self.path.parent / task.folder
        if not where.is_dir():
            raise AdapterError(
                f"{task.name} was added from {where}, which is gone; a dense store needs its "
                "factors to take it out",
                hint="say where they are with --from FOLDER",
            )
        adapter = read_adapter(where)
        if adapter.digest != task.digest:
            raise AdapterError(
                f"{where} is not what was added as {task.name}: its digest is "
                f"{adapter.digest[:12]}…, not {task.digest[:12]}…",
                hint="say where the original is with --from FOLDER",
            )
        return adapter

    def _admitted(self, adapter: Adapter, name: str | None = None) -> _Slot:
        """
        Args:
            name: of its task, if not the adapter's own.
        """
        self._base = common_base(self._base, adapter, force=self.force)
        task = task_of(adapter, past=self.path, shrink=self.shrink)
        task = replace(task, name=name or task.name)
        self._note(adapter)
        twin = next((t for t in self.tasks if t.digest == task.digest), None)
        if twin is not None and not self.force:
            raise AdapterError(
                f"{adapter.path} is in {self.path} already, as {twin.name}, since {twin.date[:10]}",
                hint="leave it out, or add it a second time with --force",
            )
        names = {t.name for t in self.tasks}
        if task.name in names:
            if not self.force:
                raise AdapterError(
                    f"{self.path} already has another adapter for the task {task.name}",
                    hint=f"use --replace {task.name} {adapter.path}, or --force to keep both",
                )
            number = next(n for n in range(2, len(names) + 3) if f"{task.name}-{n}" not in names)
            task = replace(task, name=f"{task.name}-{number}")
            self.notes.append(f"{adapter.path} is kept as {task.name}")
        curvature = read_curvature(adapter)
        if curvature is not None:
            self._curvatures[task.digest] = curvature
        block = Block(adapter.file, adapter.sources)
        part = Part((task,), block, block_record(adapter))
        return _Slot((task,), part)

    def _note(self, adapter: Adapter) -> None:
        if adapter.left_out:
            self.notes.append(
                f"{adapter.path}: {len(adapter.left_out)} untrained base weights are left out"
            )
        self.notes += objections(adapter, {task.name for task in self.tasks}, "this past")


def common_base(known: Base, adapter: Adapter, *, force: bool) -> Base:
    """The base model of a past once `adapter` is in: fingerprints decide where both have one.

    Raises:
        AdapterError: another base model.
    """
    new = base_of([adapter])
    if known.fingerprint and new.fingerprint:
        same = known.fingerprint == new.fingerprint
    else:
        # The same model goes by its hub id or by a folder's path.
        last = [model.rstrip("/").rpartition("/")[2].lower() for model in (known.model, new.model)]
        same = not all(last) or last[0] == last[1]
    if not same and not force:
        raise AdapterError(
            f"{adapter.path} was trained on {_shown(new)}, this past on {_shown(known)}",
            hint="keep one past per base model; --force if they are the same model after all",
        )
    return Base(
        known.model or new.model,
        known.fingerprint or new.fingerprint,
        known.task_type or new.task_type,
        known.fan_in_fan_out or new.fan_in_fan_out,
    )


def _shown(base: Base) -> str:
    return f"{base.model or 'a model'} ({base.fingerprint[:12] or 'no fingerprint'})"
