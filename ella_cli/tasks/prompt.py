"""The prompt of a row, in three parts, of which only the middle one may ever be cut.

The frame is O-LoRA's (cmnfriend/O-LoRA, commit 07117e1, src/uie_dataset_lora.py), so that scores
can be compared with published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import Cut, TaskSpec


@dataclass(frozen=True)
class Prompt:
    """`head + text + tail` is what the model reads; the answer follows `tail`.

    `cut` says which end of `text` goes where the whole is too long.
    """

    head: str
    text: str
    tail: str
    cut: Cut = "end"

    def __str__(self) -> str:
        return self.head + self.text + self.tail


def build_prompt(spec: TaskSpec, row: Row, *, header: bool) -> Prompt:
    """The prompt of `row`.

    Args:
        spec: the task.
        row: one of its rows; the answer is not used.
        header: put the two lines `Task:` and `Dataset:` first, as O-LoRA does. They name the data
            set at test time and so tell the model which task it faces; without them the setting is
            task-agnostic. A task without a frame never has them.
    """
    if not spec.frame:
        return _split(spec, row.text)
    head = spec.header if header else ""
    head += spec.instruction
    if spec.labels and spec.options:
        head += _line_end(spec.instruction) + "Option: " + ", ".join(spec.labels) + " \n"
    elif spec.instruction:
        head += _line_end(spec.instruction)
    return Prompt(head, row.text, "\nAnswer:", spec.cut)


def _split(spec: TaskSpec, whole: str) -> Prompt:
    head = next((one for one in spec.text_head if whole.startswith(one)), "")
    rest = whole[len(head) :]
    tail = next((one for one in spec.text_tail if rest.endswith(one)), "")
    return Prompt(head, rest[: len(rest) - len(tail)], tail, spec.cut)


def _line_end(instruction: str) -> str:
    """What brings an instruction to the end of its line."""
    return "" if not instruction or instruction.endswith("\n") else "\n"
