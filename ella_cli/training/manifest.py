"""What is written beside an adapter: `ella.json` for machines, `README.md` for people.

The adapter itself stays a stock PEFT adapter; nothing of ours goes into adapter_config.json.
docs/file-formats.md describes ella.json.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ella_cli.config import TrainSettings

FORMAT = 1
MANIFEST = "ella.json"

_PACKAGES = ("ella-cli", "torch", "transformers", "peft", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


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


def model_card(manifest: Mapping[str, Any], settings: TrainSettings) -> str:
    """The adapter's README.md: what it is, what it stands on, and how to load it."""
    task, base = manifest["task"], manifest["base"]["model"]
    earlier = manifest["past"]["tasks"]
    ground = f"`{base}` plus the updates of {', '.join(earlier)}" if earlier else f"`{base}` alone"
    penalty = f", λ = {manifest['lambda']:g}" if manifest["lambda"] else ""
    loader = f"AutoModelFor{'Causal' if manifest['kind'] == 'decoder' else 'Seq2Seq'}LM"
    return f"""---
base_model: {base}
library_name: peft
tags:
- lora
- continual-learning
- ella
---

# {task}

A LoRA adapter for the task **{task}**, trained on {manifest["data"]["train_rows"]} rows on top of
{ground} (method {manifest["method"]}{penalty}; task {manifest["order_index"] + 1} of its sequence).

Its update ΔW = {manifest["scale"]:g} · B A is one term of a sum: the model after this task is the
base plus the updates of all tasks up to it. Add it with `ella accumulate` and write the sum as one
adapter or one model with `ella export`. Alone it is a stock PEFT adapter:

```python
from peft import PeftModel
from transformers import {loader}

model = {loader}.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "path/to/this/folder")
```

| | |
|---|---|
| rank, alpha, dropout | {settings.lora_rank}, {settings.lora_alpha:g}, {settings.lora_dropout:g} |
| optimizer | AdamW, lr {settings.learning_rate:g} {settings.lr_scheduler_type} |
| global batch | {manifest["batch"]["global"]} |
| steps | {manifest["steps"]} |
| last cross-entropy | {manifest["curves"]["ce"][-1]:.3f} nats a token |
| update norm | {manifest["update_norm"]:.3f} |
| seed | {manifest["seed"]} |

Everything else, with fingerprints, curves and versions, is in `ella.json`.
"""
