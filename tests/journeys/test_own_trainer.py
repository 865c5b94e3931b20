"""The code of docs/guides/your-own-trainer.md, run as it stands: a first task, and one after it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ella_cli.adapter import read_adapter
from ella_cli.model.base import load_base
from ella_cli.past import accumulate, read_past

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "your-own-trainer.md"
# TRL 1.16 sets an argument that transformers 5.24 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")


def _code(constants: str, **instead: str) -> str:
    """The page's script with another model, other rows and folders, and these words replaced."""
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    imports, rest = code.split("\nMODEL = ")
    _, after = rest.split("\n]\n")
    for old, new in instead.items():
        assert after.count(old) == 1, old
        after = after.replace(old, new)
    return f"{imports}\n{constants}\n{after}"


@pytest.fixture
def learn(tiny_llama: Path, tmp_path: Path) -> Callable[[str, str], dict[str, Any]]:
    def run(task: str, answer: str) -> dict[str, Any]:
        code = _code(
            f"""
MODEL = {str(tiny_llama)!r}
PAST = Path({str(tmp_path)!r}) / "wpast.safetensors"
OUT = Path({str(tmp_path / task)!r})
ROWS = [{{"prompt": f"row {{i}}: the cat sat", "completion": {answer!r}}} for i in range(8)]
""",
            **{"checkpoints": str(tmp_path / "checkpoints"), "max_steps=40": "max_steps=4"},
            **{"learning_rate=1e-3": "learning_rate=1e-2"},
        )
        names: dict[str, Any] = {"__name__": "guide"}
        exec(compile(code, str(GUIDE), "exec"), names)
        return names

    return run


def test_the_guides_script_learns_a_first_task_and_a_second_on_top_of_it(
    learn: Callable[[str, str], dict[str, Any]], tiny_llama: Path, tmp_path: Path
) -> None:
    past = tmp_path / "wpast.safetensors"
    first = learn("support", " on the mat")
    assert first["trainer"].last_penalty is None
    accumulate([tmp_path / "support"], past)
    held = read_past(past)
    assert held.record.energy.kind == "curvature"
    assert [task.name for task in held.tasks] == ["support"]

    second = learn("billing", " in the hat")
    # The last step's, so of an update that has moved.
    assert float(second["trainer"].last_penalty) > 0
    assert second["measured"].rows == 8
    accumulate([tmp_path / "billing"], past)
    assert [task.name for task in read_past(past).tasks] == ["support", "billing"]
    assert read_adapter(tmp_path / "billing").digest != read_adapter(tmp_path / "support").digest
    # The model is what it was, past and adapter taken out.
    left = dict(second["base"].model.named_parameters())
    for name, weight in load_base(str(tiny_llama)).model.named_parameters():
        assert torch.equal(left[name], weight), name
