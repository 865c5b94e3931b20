"""The plan of a run: what is in memory during its last task, and how long a step takes.

    weights + LoRA, its gradients, optimizer states and spare copy + past + activations

Parts are exact where a config says it all: weights, LoRA pairs and the past are counted on the
real modules, activations on a step that is played through without data. What is left is the
allocator's: docs/results/tool.md has how far the sum was from measured peaks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ella_cli.config import RunSettings
from ella_cli.curvature import LOOKS
from ella_cli.errors import SettingsError
from ella_cli.model.base import default_dtype, device_of, prompt_room
from ella_cli.past.record import EnergyKind, Store, smaller_store
from ella_cli.plan.held import Held, HeldCurvature, held_curvature, held_past
from ella_cli.plan.played import Batch, PlayedStep, play_step
from ella_cli.plan.rates import Rates
from ella_cli.plan.skeleton import Skeleton, build_skeleton
from ella_cli.tasks import resolve_order
from ella_cli.training.methods import METHODS

FORMAT = 1

# glibc keeps freed blocks of up to 32 MB that the next tensor may not fit: 20 to 30 % of the
# activations of SmolLM2, next to nothing with MALLOC_MMAP_THRESHOLD_ set (docs/results/tool.md).
_ALLOCATOR_SHARE = 0.25

# Of a look that goes backward too: no weight of the base needs a gradient.
_FORWARD = 0.5

_STATES = {
    "adamw": (2, "AdamW's two moments"),
    "adamw-past": (2, "AdamW's two moments"),
    "muon": (1, "Muon's momentum"),
}


@dataclass(frozen=True)
class Part:
    name: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        parts: what is in memory at the peak of the last task, the process itself aside.
        process_bytes: interpreter and libraries; on a GPU that is host memory, and the parts are
            the device's.
        pasts: W_past in both stores; `store` is the one that `ella run` would keep.
        curvature: what the tasks' curvatures take beside it; None where none is measured.
        flops: of one optimizer step, all micro-batches.
        traffic: bytes read and written in one optimizer step.
        operations: what the host calls or launches in it, the penalty and the optimizer aside.
        step_seconds: an estimate: flops, traffic and calls at `rates`, plus the penalty.
        measuring_seconds: an estimate of measuring a task's curvature at its end, 0 where none is:
            a look goes forward and backward, as a step does, over as many rows; a third, which
            --importance auto takes, forward alone.
    """

    model: str
    kind: str
    dtype: str
    device: str
    tasks: int
    batch: Batch
    accumulation: int
    base_parameters: int
    lora_parameters: int
    adapted_modules: int
    parts: tuple[Part, ...]
    process_bytes: int
    store: Store
    pasts: tuple[Held, ...]
    curvature: HeldCurvature | None
    flops: int
    traffic: int
    operations: int
    penalty_seconds: float
    step_seconds: float
    measuring_seconds: float
    rates: Rates
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        total = {"bytes": self.bytes, "peak_bytes": self.bytes + self.process_bytes}
        return {"format": FORMAT, **asdict(self), **total}


def make_plan(
    settings: RunSettings,
    rates: Rates,
    *,
    process_bytes: int,
    tasks: int | None = None,
    tokens: int | None = None,
    answers: int | None = None,
    store: Store | None = None,
) -> Plan:
    """
    Args:
        settings: of the run; its data are not looked at.
        rates: of the machine the run is for.
        process_bytes: of interpreter and libraries, see `process_bytes`.
        tasks: as if the order had so many.
        tokens: of a sequence, prompt and answer; by default the most that settings allow.
        answers: answer tokens of a sequence; by default the most that settings allow.
        store: of the past; by default the smaller one, as a run chooses.

    Raises:
        ModelError: the config cannot be read, or has no module to adapt.
        TaskError: no such order.
        SettingsError: more answer tokens than tokens.
    """
    device, dtype = placement(settings)
    count = tasks or len(resolve_order(settings.order))
    skeleton = build_skeleton(settings, dtype)
    batch = _batch(settings, skeleton, tokens, answers)
    played = play_step(skeleton, batch, device=device.type)
    method = METHODS[settings.method]
    earlier = count - 1 if method.summed else 0
    energy = EnergyKind.asked(settings.protects, settings.last, settings.decay)
    stores: tuple[Store, Store] = ("factored", "dense")
    pasts = tuple(
        held_past(
            skeleton.shapes,
            settings.lora_rank,
            earlier,
            store=one,
            device=device,
            plain=energy.is_plain,
        )
        for one in stores
    )
    factored, dense = pasts
    # Factors keep tasks apart, and take nothing where there are none.
    apart = energy.needs_tasks_apart or not earlier
    kept = store or ("factored" if apart else smaller_store(factored.file, dense.file))
    past = factored if kept == "factored" else dense
    rows = min(settings.curvature_rows, settings.limit or settings.curvature_rows)
    curvature = (
        held_curvature(
            skeleton.shapes,
            settings.lora_rank,
            earlier,
            settings.energy_rank,
            rows,
        )
        if earlier and settings.curvature_rows
        else None
    )
    protects = curvature if settings.protects == "curvature" else None
    penalty = (protects or past) if method.name == "ella" and earlier else None
    notes = list(skeleton.notes)
    if method.name == "olora" and earlier:
        notes.append("olora's penalty, on the earlier adapters' A, is not counted")
    rounds = settings.gradient_accumulation_steps
    penalty_seconds = _penalty_seconds(penalty, rates)
    micro = _micro_seconds(played, rates, device)
    looks = 0.0
    if method.measures(settings.curvature_rows):
        looks = LOOKS + (_FORWARD if settings.importance == "auto" else 0)
    return Plan(
        model=settings.model,
        kind=skeleton.kind,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        tasks=count,
        batch=batch,
        accumulation=rounds,
        base_parameters=skeleton.base_parameters,
        lora_parameters=skeleton.lora_parameters,
        adapted_modules=len(skeleton.shapes),
        parts=_parts(skeleton, played.activations, penalty, earlier, settings.optim),
        process_bytes=process_bytes,
        store=kept,
        pasts=pasts,
        curvature=curvature,
        flops=rounds * played.flops,
        traffic=rounds * played.traffic,
        operations=rounds * played.operations,
        penalty_seconds=penalty_seconds,
        step_seconds=rounds * micro + penalty_seconds,
        measuring_seconds=looks * rows / batch.sequences * micro,
        rates=rates,
        notes=tuple(notes),
    )


def placement(settings: RunSettings) -> tuple[torch.device, torch.dtype]:
    """Where and in what a run would compute; a GPU that is not here is taken to have bfloat16."""
    device = device_of(settings.device)
    if settings.dtype != "auto":
        return device, getattr(torch, settings.dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        return device, torch.bfloat16
    return device, default_dtype(device)


def _batch(
    settings: RunSettings, skeleton: Skeleton, tokens: int | None, answers: int | None
) -> Batch:
    wanted = settings.max_target_length if answers is None else answers
    room = prompt_room(
        skeleton.model.config, skeleton.kind, settings.max_source_length, settings.max_target_length
    )
    longest = room + wanted if tokens is None else tokens
    if not 0 < wanted < longest:
        raise SettingsError(
            f"{wanted} answer tokens in sequences of {longest} leave no prompt",
            hint="--tokens counts prompt and answer together; give more of them",
        )
    return Batch(settings.per_device_train_batch_size, longest, wanted)


def _micro_seconds(played: PlayedStep, rates: Rates, device: torch.device) -> float:
    work = played.flops / rates.flops + played.traffic / rates.bandwidth
    calls = played.operations * rates.call
    # A GPU works while the host goes on to call: the slower of the two is what is waited for.
    return max(work, calls) if device.type == "cuda" else work + calls


def _penalty_seconds(penalty: Held | HeldCurvature | None, rates: Rates) -> float:
    if penalty is None:
        return 0.0
    if isinstance(penalty, Held):
        return penalty.seconds
    return penalty.flops / rates.flops + 2 * penalty.memory / rates.bandwidth


def _parts(
    skeleton: Skeleton,
    activations: int,
    penalty: Held | HeldCurvature | None,
    earlier: int,
    optim: str,
) -> tuple[Part, ...]:
    pair = skeleton.lora_bytes
    states, kind = _STATES[optim]
    turns = penalty.turns if isinstance(penalty, HeldCurvature) and optim == "adamw-past" else 0
    each = torch.empty((), dtype=skeleton.dtype).element_size()
    touched = sum(m * n * each for m, n in skeleton.shapes.values()) if earlier else 0
    adapted = len(skeleton.shapes)
    slack = int(_ALLOCATOR_SHARE * activations)
    parts = (
        Part("weights", skeleton.base_bytes, f"{skeleton.base_parameters:,} parameters, frozen"),
        Part("LoRA", pair, f"{skeleton.lora_parameters:,} parameters on {adapted} modules"),
        Part("gradients", pair, "one a LoRA parameter"),
        Part("optimizer states", states * pair, kind),
        Part("spare copy", pair, "the last good LoRA weights, should a loss become NaN"),
        Part("turns", turns, "into the past's eigenvectors and back, at most"),
        Part("past", penalty.memory if penalty else 0, _past_words(penalty, earlier)),
        Part("pristine weights", touched, "of adapted modules: every sum starts from them"),
        Part("activations", activations, "at the peak of one micro-batch, played through"),
        Part("allocator", slack, f"{_ALLOCATOR_SHARE:.0%} of the activations, as measured"),
    )
    return tuple(part for part in parts if part.name != "turns" or part.bytes)


def _past_words(penalty: Held | HeldCurvature | None, earlier: int) -> str:
    if penalty is None:
        return "no penalty against it" if earlier else "none before the first task"
    if isinstance(penalty, HeldCurvature):
        of_g, of_c = penalty.ranks
        kept = f"about {of_g} and {of_c} eigenvectors" if penalty.cut else f"{of_g} eigenvectors"
        return f"the curvature of {earlier} tasks, {kept} a factor"
    return f"{earlier} tasks, {penalty.store}; the penalty's form is {penalty.form}"
