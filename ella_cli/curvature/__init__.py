"""How much the loss of a task just learned rises when the weights move on: measured, not kept data.

    measure_curvature   a trained model and a few rows -> G ⊗ C and directions per module, in nats
                        per answer token, and how much more its answers cost to other questions
    importance_of       how much the task counts in a penalty, by what was learned of it

docs/method.md derives the estimate; `adapter.curvature` keeps it, `kernels.curvature` uses it.
"""

from __future__ import annotations

from ella_cli.curvature.directions import (
    DIRECTIONS,
    INPUT_COLUMNS,
    MOST_DIRECTIONS,
    OUTPUT_COLUMNS,
    basis_columns,
    directions_of,
)
from ella_cli.curvature.learned import importance_of
from ella_cli.curvature.measure import LOOKS, SHRINKAGE, Measured, measure_curvature

__all__ = [
    "DIRECTIONS",
    "INPUT_COLUMNS",
    "LOOKS",
    "MOST_DIRECTIONS",
    "OUTPUT_COLUMNS",
    "SHRINKAGE",
    "Measured",
    "basis_columns",
    "directions_of",
    "importance_of",
    "measure_curvature",
]
