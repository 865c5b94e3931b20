"""Signs that a penalty did too much, or nothing: what the curves of a stage say.

- collapse: the update shrank to almost nothing while the task was not learned. `B = 0` minimises
  the penalty, so a large λ can train a task to the adapter that does nothing. Without a penalty
  the task was hardly trained.
- idle: λ · penalty never reached a share of the cross-entropy that could have mattered.
- ruling: at the end λ · penalty outweighs the cross-entropy that the task is trained for.

The thresholds are conventions, stated in every sentence that applies one. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# An update this small beside the other tasks' updates, or beside its own peak, has collapsed...
COLLAPSED_NORM = 0.1
# ...if the cross-entropy also ended above this share of where it began.
UNLEARNED_CE = 0.8
# λ · penalty below this share of the cross-entropy at every step does nothing that can be seen.
IDLE_SHARE = 1e-3
# "At the end" is the last tenth of a curve; single steps are noisy.
_TAIL = 0.1

Kind = Literal["collapse", "idle", "ruling"]
Values = Sequence[float | None]


@dataclass(frozen=True)
class Sign:
    task: str
    kind: Kind
    text: str


@dataclass(frozen=True)
class Course:
    """How a stage went so far: one entry a recorded step, None where it was not recorded.

    Attributes:
        ce, weighted_penalty: nats; update_norm: ‖ΔW‖_F.
        lam: the weight of its penalty, None if not known.
        usual_norm: ‖ΔW‖_F of the other tasks, 0 if there are none.
        protects: whether there was a past to protect.
    """

    task: str
    ce: Values
    weighted_penalty: Values
    update_norm: Values
    lam: float | None
    usual_norm: float = 0.0
    protects: bool = True

    @property
    def ratio(self) -> tuple[float | None, ...]:
        """λ · penalty / CE at each step; None where either is missing or CE is 0."""
        pairs = zip(self.weighted_penalty, self.ce, strict=True)
        return tuple(p / c if p is not None and c else None for p, c in pairs)

    def signs(self) -> list[Sign]:
        """At most one of a kind."""
        found = [self._collapse()]
        if self.lam:
            found += [self._idle(), self._ruling()]
        return [sign for sign in found if sign is not None]

    def _collapse(self) -> Sign | None:
        norms = known(self.update_norm)
        start, end = head_mean(self.ce), tail_mean(self.ce)
        peak = max([*norms, self.usual_norm], default=0.0)
        if not norms or start is None or end is None or not norms[-1] < COLLAPSED_NORM * peak:
            return None
        if not end > UNLEARNED_CE * start:
            return None
        advice = (
            "λ is too large for this task: lower --rho or --lambda tenfold."
            if self._is_held()
            else "No penalty held it: train it for more steps, or with a larger --learning-rate."
        )
        return Sign(
            self.task,
            "collapse",
            f"{self.task} collapsed: ‖ΔW‖ ended at {norms[-1]:.3g}, under {COLLAPSED_NORM:.0%} of "
            f"{peak:.3g}, and the cross-entropy at {end:.3f} from {start:.3f} (over "
            f"{UNLEARNED_CE:.0%}). {advice}",
        )

    def _is_held(self) -> bool:
        """Whether a penalty acted; where none was recorded, λ says."""
        penalties = known(self.weighted_penalty)
        return any(penalties) if penalties else bool(self.lam)

    def _idle(self) -> Sign | None:
        largest = max(known(self.ratio), default=None)
        if not self.protects or largest is None or largest >= IDLE_SHARE:
            return None
        return Sign(
            self.task,
            "idle",
            f"the penalty was idle on {self.task}: λ · penalty stayed under {IDLE_SHARE:.1%} of "
            f"the cross-entropy (at most {largest:.2g} of it), as in a run without a penalty. To "
            "protect more, raise --rho or --lambda tenfold.",
        )

    def _ruling(self) -> Sign | None:
        end = tail_mean(self.ratio)
        if end is None or end <= 1:
            return None
        return Sign(
            self.task,
            "ruling",
            f"the penalty ruled {self.task}: λ · penalty ended at {end:.3g} times the "
            "cross-entropy. To learn more, lower --rho or --lambda.",
        )


def known(values: Values) -> list[float]:
    """Those that are there and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def tail_mean(values: Values) -> float | None:
    return _mean(known(values[-_tenth(values) :]))


def head_mean(values: Values) -> float | None:
    return _mean(known(values[: _tenth(values)]))


def _tenth(values: Values) -> int:
    return max(1, math.ceil(_TAIL * len(values)))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
