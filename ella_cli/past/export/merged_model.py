"""W_0 + W_past as a plain Hugging Face model folder, written shard by shard."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import ModelError, PastError, ShapeError
from ella_cli.files import read_json
from ella_cli.model.base import fingerprint_of
from ella_cli.model.source import model_errors
from ella_cli.past.export.card import write_card
from ella_cli.past.export.exported import Exported, empty_folder
from ella_cli.past.past import Past

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Weights in other formats stay behind: they would be those of the model without its past.
_OTHER_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ot"}
)


@dataclass(frozen=True)
class _Target:
    """Where W_past of one module goes."""

    name: str
    turned: bool  # the weight is stored as (N, M)
    shape: tuple[int, ...]  # of the weight


def export_merged(past: Past, model: Path, folder: Path) -> Exported:
    """Writes the model with its past folded in: each weight is f32(W_0) + W_past, rounded once.

    One weight is in memory at a time; everything else is copied as it is.

    Args:
        past: of either store.
        model: the base model's folder, with config.json and safetensors.
        folder: must not hold anything yet.

    Raises:
        ModelError: no such model, another than the past's, quantised, pickled, or one whose
            weights cannot take the past.
        ShapeError: a module has another shape in the model.
        PastError: no task in it, or the file is damaged.
        StorageError: the folder is not empty or cannot be written.
    """
    if not past.names:
        raise PastError(f"{past.path} holds no task", hint="accumulate an adapter first")
    shards = _shards(model)
    skeleton = _skeleton(model)
    _check_ground(past, skeleton, shards, model)
    targets = [_target(skeleton, past, name) for name in past.names]
    keys = {key for shard in shards for key in shard.entries}
    placed = _placed(targets, keys, skeleton.base_model_prefix, model)
    exactness = "W_0 + W_past in fp32, rounded once to the model's own dtype"
    with empty_folder(folder) as temporary:
        for shard in shards:
            _merge(shard, placed, past, temporary / shard.path.name)
        _copy_the_rest(model, temporary)
        write_card(temporary, past, "merged model", exactness, past.base.model)
    return Exported(folder, "merged model", exactness)


def _shards(model: Path) -> list[TensorFile]:
    if not (model / "config.json").is_file():
        raise ModelError(
            f"{model} is not a model folder: it has no config.json",
            hint="give --model the base model's local folder",
        )
    config = read_json(model / "config.json")
    if isinstance(config, dict) and config.get("quantization_config"):
        raise ModelError(
            f"{model} is quantised; W_past cannot be added to packed weights",
            hint="give --model the folder of the unquantised model, or export --as peft",
        )
    names = [_WEIGHTS]
    if (model / _INDEX).is_file():
        names = _named_in_index(model)
    missing = [name for name in names if not (model / name).is_file()]
    if missing:
        raise ModelError(
            f"{model} has no {missing[0]}",
            hint="save the model with save_pretrained, which writes safetensors",
        )
    return [TensorFile.open(model / name, ModelError) for name in names]


def _named_in_index(model: Path) -> list[str]:
    index = read_json(model / _INDEX)
    files = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted(set(files.values())) if isinstance(files, dict) else []
    # A name with a folder in it would be written outside the export.
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise ModelError(f"{model / _INDEX} names no usable files", hint="save the model again")
    return names


def _skeleton(model: Path) -> PreTrainedModel:
    """The model without weights: what its modules are, and which share a weight."""
    import transformers

    with (
        model_errors(
            f"transformers cannot build {model} from its config",
            hint="only architectures that transformers knows can be merged; export --as peft",
        ),
        torch.device("meta"),
    ):
        config = transformers.AutoConfig.from_pretrained(
            model, local_files_only=True, trust_remote_code=False
        )
        architecture = getattr(transformers, (config.architectures or ["none"])[0])
        if not issubclass(architecture, transformers.PreTrainedModel):
            raise TypeError(f"{architecture.__name__} is no model")
        skeleton: PreTrainedModel = architecture(config)
    return skeleton


def _check_ground(
    past: Past, skeleton: PreTrainedModel, shards: list[TensorFile], model: Path
) -> None:
    """Makes sure that these are the weights the past was made on, as far as files can tell."""
    files = {key: shard for shard in shards for key in shard.entries}
    shared: dict[int, list[str]] = defaultdict(list)
    for name, weight in skeleton.named_parameters(remove_duplicate=False):
        shared[id(weight)].append(name)
    twins = {name: names for names in shared.values() for name in names}
    prefix = skeleton.base_model_prefix
    keys = {
        name: next(
            filter(None, (_stored(twin, files, prefix) for twin in twins.get(name, [name]))), None
        )
        for name in skeleton.state_dict()
    }
    if not past.base.fingerprint or None in keys.values():
        # An adapter from elsewhere, or files with other names than the model's: nothing to compare.
        return

    def read(name: str) -> Tensor:
        return files[str(keys[name])].map(str(keys[name]))

    found = fingerprint_of(keys, read)
    if found == past.base.fingerprint:
        return
    # Loaded as float16, weights that are stored finer have other values.
    if fingerprint_of(keys, lambda name: read(name).half()) != past.base.fingerprint:
        raise ModelError(
            f"{model} has fingerprint {found[:12]}, the past was made on a base with "
            f"{past.base.fingerprint[:12]}",
            hint="give --model the model that the past was made on; `ella inspect past` names it",
        )


def _target(skeleton: PreTrainedModel, past: Past, name: str) -> _Target:
    from transformers.pytorch_utils import Conv1D

    try:
        module = skeleton.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"the model has no module {name}, which the past changes",
            hint="the past was made on another base model; see `ella inspect`",
        ) from error
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise ModelError(f"{name} has no weight to add W_past to", hint="export --as peft")
    _refuse_shared(skeleton, name, weight)
    turned = isinstance(module, Conv1D | nn.Embedding)
    flat = tuple(weight.flatten(1).shape)
    wanted = past.shape(name)[::-1] if turned else past.shape(name)
    if flat != wanted:
        raise ShapeError(
            f"{name} is {flat} in the model and {wanted} in the past",
            hint="the past was made on another base model; see `ella inspect`",
        )
    return _Target(name, turned, tuple(weight.shape))


def _refuse_shared(skeleton: PreTrainedModel, name: str, weight: Tensor) -> None:
    for other, module in skeleton.named_modules(remove_duplicate=False):
        if other != name and getattr(module, "weight", None) is weight:
            raise ModelError(
                f"{name} shares its weight with {other}; merged, the past would change both",
                hint="export --as peft, which keeps them apart",
            )


def _stored(key: str, keys: Container[str], prefix: str) -> str | None:
    """A weight's name in the files; older ones lack the model's own prefix."""
    bare = key.removeprefix(f"{prefix}.")
    return next((one for one in (key, bare, f"{prefix}.{key}") if one in keys), None)


def _placed(
    targets: list[_Target], keys: set[str], prefix: str, model: Path
) -> Mapping[str, _Target]:
    """Tensor name in the files -> target."""
    placed = {}
    for target in targets:
        key = f"{target.name}.weight"
        found = _stored(key, keys, prefix)
        if found is None:
            raise ModelError(
                f"the files of {model} hold no {key}",
                hint="load the model with transformers and save it again with save_pretrained",
            )
        placed[found] = target
    return placed


def _merge(shard: TensorFile, placed: Mapping[str, _Target], past: Past, path: Path) -> None:
    with TensorFileWriter(path, shard.entries, shard.metadata) as writer:
        for key, entry in shard.entries.items():
            target = placed.get(key)
            if target is None:
                writer.copy(shard, entry.start, entry.stop)
                continue
            weight = shard.read(key)
            if tuple(weight.shape) != target.shape:
                raise ShapeError(
                    f"{key} is {tuple(weight.shape)} in {shard.path}, not {target.shape}",
                    hint="config.json and weights are not of one model",
                )
            delta = past.delta(target.name)  # (M, N) f32
            oriented = (delta.T if target.turned else delta).reshape(weight.shape)
            writer.write((weight.float() + oriented).to(weight.dtype))
        writer.finish(shard.metadata)


def _copy_the_rest(model: Path, folder: Path) -> None:
    for file in model.iterdir():
        weights = file.suffix in _OTHER_WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and file.name != "README.md" and not weights:
            shutil.copyfile(file, folder / file.name)
    if (model / _INDEX).is_file():
        shutil.copyfile(model / _INDEX, folder / _INDEX)
