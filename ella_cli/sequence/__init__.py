"""A whole order of tasks: train → accumulate → evaluate, resumable at every finished step.

run_folder.py  which run a folder belongs to, and what of it is finished
first_stage.py the first stage, which no past touches, from another run
loading.py     tasks, the base model once, an adapter's ground
run.py         the steps, each skipped if its result is there
score.py       every stage of a run on every task, and the results
evaluate.py    the same for what lies on disk already: a run, adapters, a past file
measure.py     the curvature of a stage that is trained already
"""

from ella_cli.sequence.evaluate import evaluate_adapters, evaluate_past, evaluate_run
from ella_cli.sequence.first_stage import has_first_stage
from ella_cli.sequence.loading import ground_of, load_tasks
from ella_cli.sequence.run import check_run, run_order
from ella_cli.sequence.run_folder import RunFolder

__all__ = [
    "RunFolder",
    "check_run",
    "evaluate_adapters",
    "evaluate_past",
    "evaluate_run",
    "ground_of",
    "has_first_stage",
    "load_tasks",
    "run_order",
]
