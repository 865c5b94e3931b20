"""‖ΔW ⊙ W_past‖²_F of a LoRA update ΔW = scale · B A, and its gradients: tensors only.

    penalty, penalty_many    the value, at once
    plan_penalty             the same for a training loop: a task's constants prepared once
    plan_curvature           what an update costs past tasks, by their curvatures `Kronecker`
    Factors                  W_past = P Q, kept as its factors
    add_update, shrink       W_past += scale · B A;  G / (1 + λ W_past²)

Knows nothing of tasks or models; the folder can be lifted out whole. docs/method.md derives it.
"""

from ella_cli.kernels.curvature import CurvaturePlan, Others, plan_curvature
from ella_cli.kernels.kronecker import Kronecker
from ella_cli.kernels.operands import Factors
from ella_cli.kernels.plan import PenaltyPlan, plan_penalty
from ella_cli.kernels.sums import penalty, penalty_many
from ella_cli.kernels.update import add_update, shrink

__all__ = [
    "CurvaturePlan",
    "Factors",
    "Kronecker",
    "Others",
    "PenaltyPlan",
    "add_update",
    "penalty",
    "penalty_many",
    "plan_curvature",
    "plan_penalty",
    "shrink",
]
