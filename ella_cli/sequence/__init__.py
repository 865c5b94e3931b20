"""A whole order of tasks: train → accumulate → evaluate, resumable at every finished step.

run_folder.py  what lies where in a run's folder, and which run a folder belongs to
run.py         the steps, each skipped if its result is there
"""

from ella_cli.sequence.run import (
    evaluate_adapters,
    evaluate_run,
    ground_of,
    load_tasks,
    run_order,
)
from ella_cli.sequence.run_folder import RunFolder

__all__ = ["RunFolder", "evaluate_adapters", "evaluate_run", "ground_of", "load_tasks", "run_order"]
