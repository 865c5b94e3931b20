"""The model card (README.md) that goes along with an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ella_cli.model.source import adapter_loading, hub_id
from ella_cli.past.past import Past

_LOADING = {
    "merged model": """\
from transformers import {auto}

model = {auto}.from_pretrained("path/to/this/folder")""",
    "dense past": """\
from pathlib import Path
from ella_cli.past import read_past

past = read_past(Path("path/to/this/folder/wpast.safetensors"))""",
}
_AUTO = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}


def write_card(folder: Path, past: Past, form: str, exactness: str, base: str) -> None:
    names = " → ".join(task.name for task in past.tasks) or "no task"
    library = {"adapter": "peft", "merged model": "transformers"}.get(form)
    auto = _AUTO.get(past.base.task_type or "", "AutoModel")
    lines = [
        *_front_matter(base, library, form),
        f"# {base or 'A language model'} after {names}",
        "",
        f"This {form} holds W_past, the sum of what {len(past.tasks)} tasks, learnt one after the "
        "other with [ELLA](https://arxiv.org/abs/2601.02232), added to the weights. "
        "No task id is needed to use it.",
        "",
        f"Exactness: {exactness}.",
        "",
        *_tasks(past),
        "",
        "```python",
        *(
            adapter_loading(base or "BASE MODEL", auto)
            if form == "adapter"
            else [_LOADING[form].format(auto=auto)]
        ),
        "```",
        "",
        f"W_past digest: `{past.digest}`",
        f"Base model fingerprint: `{past.base.fingerprint or 'not recorded'}`",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _front_matter(base: str, library: str | None, form: str) -> Sequence[str]:
    lines = ["---"]
    known = hub_id(base)
    if known:
        lines.append(f"base_model: {known}")
    if library:
        lines.append(f"library_name: {library}")
    tags = ["ella", "continual-learning", *(["lora"] if form == "adapter" else [])]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _tasks(past: Past) -> Sequence[str]:
    lines = ["| | task | rank | λ | ‖ΔW‖ | adapter |", "|---|---|---|---|---|---|"]
    for index, task in enumerate(past.tasks, start=1):
        lam = "–" if task.lam is None else f"{task.lam:g}"
        name = task.name.replace("|", r"\|")
        lines.append(
            f"| {index} | {name} | {task.rank} | {lam} | {task.update_norm:.4g} "
            f"| `{task.digest[:12]}` |"
        )
    return lines
