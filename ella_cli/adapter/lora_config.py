"""What adapter_config.json says of ΔW: rank and scale per module, or why there is no such ΔW."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ella_cli.errors import AdapterError

# Fields of LoraConfig (peft 0.21) under which ΔW is not scale · B A, or not all that was trained.
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales whole columns of the weight",
    "use_qalora": "QA-LoRA pools the input before A",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "lora_bias": "lora_bias trains a bias beside B A",
    "alora_invocation_tokens": "aLoRA acts on some tokens only",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA changes the base weight by an SVD",
    "velora_config": "VeLoRA is a LoRA variant with tensors of its own",
    "monteclora_config": "MonteCLoRA samples its update",
    "target_parameters": "target_parameters adapts bare parameters, not modules",
    "trainable_token_indices": "trainable_token_indices trains rows of the embedding as such",
    "modules_to_save": "modules_to_save trains whole modules beside B A",
    "layer_replication": "layer_replication adapts layers the base model does not have",
}
# These initialisations take B A out of the base weight before training, or freeze half of it.
_REFUSED_STARTS: Mapping[str, str] = {
    "pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ",
    "lora_ga": "LoRA-GA", "mica": "MiCA",
}  # fmt: skip

# Repeats in all keys of a pattern together: what a file of patterns may cost, module after module.
_MOST_REPEATS = 16


class LoraSettings:
    """The checked settings of one adapter."""

    def __init__(self, config: Any, where: Path) -> None:
        """
        Raises:
            AdapterError: not LoRA, a variant with another ΔW (named), or nonsense.
        """
        self._where = where
        self._config: Mapping[str, Any] = _mapping(config, "adapter_config.json", where)
        self._refuse_variants()
        self._rank = self._of_type("r", int, 8)
        self._alpha = self._of_type("lora_alpha", (int, float), 8)
        self._rank_pattern = self._pattern("rank_pattern")
        self._alpha_pattern = self._pattern("alpha_pattern")
        self._rank_stabilised = bool(config.get("use_rslora"))

    @property
    def base_model(self) -> str:
        return str(self._of_type("base_model_name_or_path", str, ""))

    @property
    def task_type(self) -> str | None:
        return str(self._of_type("task_type", str, "")) or None

    @property
    def fan_in_fan_out(self) -> bool:
        return bool(self._config.get("fan_in_fan_out"))

    def rank(self, module: str) -> int:
        return int(self._rank_pattern.get(_matching(self._rank_pattern, module), self._rank))

    def scale(self, module: str) -> float:
        """By peft's own rule: alpha / R, or alpha / sqrt(R) with rsLoRA."""
        alpha = self._alpha_pattern.get(_matching(self._alpha_pattern, module), self._alpha)
        rank = self.rank(module)
        return float(alpha / rank**0.5 if self._rank_stabilised else alpha / rank)

    def _refuse_variants(self) -> None:
        kind = self._config.get("peft_type")
        if kind != "LORA":
            self._refuse(f"it is of type {str(kind)[:40]}, not LORA")
        for setting, why in _REFUSED.items():
            if self._config.get(setting):
                self._refuse(why)
        bias = self._config.get("bias") or "none"
        if bias != "none":
            self._refuse(f"bias={str(bias)[:40]} trains biases beside B A")
        start = str(self._config.get("init_lora_weights")).lower()
        for prefix, name in _REFUSED_STARTS.items():
            if start.startswith(prefix):
                self._refuse(f"{name} changed the base weights it was trained on")

    def _refuse(self, why: str) -> None:
        raise AdapterError(
            f"{self._where} cannot be added to W_past: {why}",
            hint="train it as plain LoRA, or convert it to plain LoRA with peft first",
        )

    def _of_type(self, key: str, kinds: type | tuple[type, ...], default: Any) -> Any:
        value = self._config.get(key)
        if value is None:
            return default
        if not isinstance(value, kinds) or isinstance(value, bool) or not _is_usable(value):
            raise AdapterError(
                f"{self._where}: {key} is {str(value)[:40]!r} in adapter_config.json",
                hint="the file was changed by hand; save the adapter again with peft",
            )
        return value

    def _pattern(self, key: str) -> Mapping[str, Any]:
        pattern = _mapping(self._config.get(key) or {}, key, self._where)
        if sum(map(_repeats, pattern)) > _MOST_REPEATS:
            raise AdapterError(
                f"{self._where}: {key} has more than {_MOST_REPEATS} repeats in its patterns",
                hint="name the modules, or write one pattern for many of them",
            )
        for name, value in pattern.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not _is_usable(value) or not _is_tame(name):
                raise AdapterError(
                    f"{self._where}: {key} has the unusable entry {name[:60]!r}: {str(value)[:20]}",
                    hint="give numbers, and module names or patterns of few repeats, none nested",
                )
        return pattern


def _mapping(value: Any, what: str, where: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AdapterError(
            f"{where}: {what} is not a JSON object",
            hint="the file was changed by hand; save the adapter again with peft",
        )
    return value


def _is_usable(value: Any) -> bool:
    """Whether a number is one that float64 has; JSON's may be NaN, or of a thousand digits."""
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def _is_tame(pattern: str) -> bool:
    """Whether a stranger's regular expression compiles and cannot run for ever.

    Repeated groups and many choices are what makes backtracking exponential; real patterns are
    module names.
    """
    if len(pattern) > 300 or re.search(r"\)[*+{?]", pattern):
        return False
    if _repeats(pattern) > 2 or pattern.count("|") > 8:
        return False
    try:
        _whole(pattern)
    except (re.error, OverflowError):
        return False
    return True


def _repeats(pattern: str) -> int:
    # What follows an opening bracket is no repeat but says what kind of group it is.
    return len(re.findall(r"[*+{]|(?<!\()\?", pattern))


@lru_cache(maxsize=1 << 14)
def _whole(key: str) -> re.Pattern[str]:
    """What peft matches a module's whole name with, for a key of its patterns."""
    return re.compile(rf"(.*\.)?({key})$")


def _matching(pattern: Mapping[str, Any], module: str) -> str:
    """The first key that names `module`, by peft's own rule; else `module`."""
    return next((key for key in pattern if _whole(key).match(module)), module)
