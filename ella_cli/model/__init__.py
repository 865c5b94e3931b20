"""The frozen base model: found, loaded, adapted through PEFT, and with the past in its weights.

source ─▶ Base ─▶ Fold (W0 + W_past) ─▶ LoRA on top
source.py base.py fold.py               lora.py
"""
