"""What `ella.json` is filled with: versions, and the course of a training.

The adapter itself stays a stock PEFT adapter; nothing of ours goes into adapter_config.json.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("ella-cli", "torch", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """The versions that a result depends on; `unknown` of what runs without being installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def curves(log: Sequence[Mapping[str, Any]], lam: float) -> dict[str, list[float]]:
    """Columns of what a Trainer logged, one entry a recorded step."""
    points = [entry for entry in log if "ce" in entry]
    return {
        "step": [point["step"] for point in points],
        "ce": [point["ce"] for point in points],
        "penalty": [point["penalty"] for point in points],
        "weighted_penalty": [lam * point["penalty"] for point in points],
        "update_norm": [point["update_norm"] for point in points],
    }
