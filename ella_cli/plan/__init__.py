"""What a run will take, from the model's config alone: memory by its parts, and time per step.

skeleton.py   the model with LoRA on it, on the meta device: shapes without weights
played.py     one training step played through on it, its living tensors and its work counted
operations.py counts what is called
held.py       what the past takes in either store
process.py    what interpreter and libraries take
rates.py      how fast this machine multiplies, copies and calls
plan.py       the sum of it
"""

from ella_cli.plan.plan import Plan, make_plan
from ella_cli.plan.process import process_bytes
from ella_cli.plan.rates import Rates, measure_rates

__all__ = ["Plan", "Rates", "make_plan", "measure_rates", "process_bytes"]
