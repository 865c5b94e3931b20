"""Many runs over λ and seeds, shared through one Optuna study: λ chosen on held-out train rows.

points.py    which runs: a λ and a seed each, its settings and its folder's name
study.py     the study they are kept in: what is waiting, running, done; whose worker is dead
worker.py    takes one run after another until none is left
sweep.py     the whole: check, start workers, wait, summarise
outcome.py   mean ± deviation per λ, and the best
document.py  the same as a table and a plot
"""

from ella_cli.sweep.outcome import Outcome
from ella_cli.sweep.points import Point, points_of
from ella_cli.sweep.sweep import Sweep, run_sweep

__all__ = ["Outcome", "Point", "Sweep", "points_of", "run_sweep"]
