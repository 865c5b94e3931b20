"""Text: what a task asks, its rows, its prompt, in which order tasks come, and how answers score.

Importing this loads neither torch nor transformers (`batches`, which makes tensors, does);
`datasets` and the metric libraries are imported where they are first needed.
"""

from ella_cli.tasks.load import load_task
from ella_cli.tasks.orders import ORDERS, known_names, resolve_order
from ella_cli.tasks.prompt import Prompt, build_prompt
from ella_cli.tasks.rows import Row, Task
from ella_cli.tasks.scoring import score_rows
from ella_cli.tasks.spec import Columns, Hub, TaskSpec, builtin_names, builtin_spec

__all__ = [
    "ORDERS",
    "Columns",
    "Hub",
    "Prompt",
    "Row",
    "Task",
    "TaskSpec",
    "build_prompt",
    "builtin_names",
    "builtin_spec",
    "known_names",
    "load_task",
    "resolve_order",
    "score_rows",
]
