"""A PEFT LoRA adapter on disk, read as what it adds to the weights: ΔW = scale · B A."""

from __future__ import annotations

from ella_cli.adapter.adapter import Adapter, Layer, Update, read_adapter

__all__ = ["Adapter", "Layer", "Update", "read_adapter"]
