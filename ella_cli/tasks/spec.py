"""What a task is before it has rows: a versioned YAML file, read into a frozen value.

The built-in ones lie in `specs/`, one file a task. A user's folder may hold a `task.yaml` with the
same keys.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ella_cli.errors import TaskError
from ella_cli.names import has_half_characters, is_nameable
from ella_cli.wording import plain

Metric = Literal["accuracy", "rouge-l", "edit-similarity", "sari"]
Compare = Literal["exact", "first-letter"]
Cut = Literal["end", "start"]

METRICS: tuple[Metric, ...] = get_args(Metric)

_SPECS = Path(__file__).parent / "specs"
# Bytes; folders of stages and files of scores are named after it, with a few more.
_LONGEST_NAME = 200
_STRICT = ConfigDict(extra="forbid")
# Of a task's fields, those that a prompt or a score is made with.
_DECIDING = (
    "name", "kind", "dataset", "instruction", "labels", "options", "frame", "text_head",
    "text_tail", "cut", "metric", "compare",
)  # fmt: skip


@dataclass(frozen=True, config=_STRICT)
class Hub:
    """Where the rows lie on the Hugging Face hub, and how a record becomes text and answer.

    `text` is a `str.format` pattern over the record's columns. `labels` maps the value of the
    `answer` column, as text, to the benchmark's label; empty, the value is the answer. A row whose
    value maps to nothing is left out.
    """

    dataset: str
    train: str
    test: str
    text: str
    answer: str
    config: str | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, config=_STRICT)
class Columns:
    """Which columns of a user's files hold the text and the answer."""

    text: str
    answer: str


@dataclass(frozen=True, config=_STRICT)
class TaskSpec:
    """One task, without its rows.

    Attributes:
        name: what `--task` and an order call it.
        version: raised when labels, instruction, metric or rows change, for people to see.
        kind: NLI, QQP, SC, TC, BoolQA, MultiRC, WiC, COPA, TRACE, demo, or own.
        dataset: the name in the header line `Dataset:`, and of the folder in published layouts.
        instruction: the question put before the text; empty where the text asks by itself.
        labels: the answers to choose from, in the benchmark's own order; empty for free text.
        options: whether the prompt lists the labels.
        frame: whether text is put between an instruction and `Answer:`. TRACE's text is already
            a whole prompt.
        text_head: openings of an unframed text that belong to the frame, never to be cut.
        text_tail: endings of an unframed text that belong to the frame, never to be cut.
        cut: which end of an over-long text goes; code to be completed loses its start.
        metric: how an answer is scored; None until its rows tell, which free text then scores by
            rouge-l.
        compare: "first-letter" scores only the letter chosen, for answers that go on to explain.
    """

    name: str
    version: int = 1
    kind: str = "own"
    dataset: str = ""
    instruction: str = ""
    labels: tuple[str, ...] = ()
    options: bool = True
    frame: bool = True
    text_head: tuple[str, ...] = ()
    text_tail: tuple[str, ...] = ()
    cut: Cut = "end"
    metric: Metric | None = None
    compare: Compare = "exact"
    columns: Columns | None = None
    hub: Hub | None = None
    title: str = ""
    source: str = "unknown"
    licence: str = "unknown"
    citation: str = ""

    def __post_init__(self) -> None:
        name = self.name
        filed = len(name.encode(errors="replace")) <= _LONGEST_NAME and is_nameable(name)
        if not name.strip() or not filed or name.startswith(".") or re.search(r"[/\\]", name):
            raise TaskError(
                f"{self.name[:60]!r} cannot be a task's name, for results are filed under it",
                hint="use letters, digits, - and _",
            )
        said = (self.instruction, self.title, *self.labels, *self.text_head, *self.text_tail)
        halved = next(filter(has_half_characters, said), None)
        if halved is not None:
            raise TaskError(
                f"task {self.name!r}: {halved[:40]!r} holds half a character (a lone surrogate)",
                hint="it was cut in the middle of an emoji; take it out",
            )
        # An answer's case and white space say nothing.
        plain = [normal_form(label) for label in self.labels]
        pairs = zip(self.labels, plain, strict=True)
        twice = [label for label, one in pairs if plain.count(one) > 1]
        if twice:
            raise TaskError(
                f"task {self.name!r} lists the label {twice[0]!r} twice, as {twice[1]!r}",
                hint="list each label once; case and white space tell none apart",
            )
        if any(not label.strip() for label in self.labels):
            raise TaskError(
                f"task {self.name!r} has an empty label", hint="give every label a text"
            )

    @property
    def digest(self) -> str:
        """SHA-256, hex, over all that prompts and scores depend on beside the rows."""
        facts = [getattr(self, name) for name in _DECIDING]
        return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def header(self) -> str:
        """The published header, which names the data set and so gives the task away."""
        return f"Task:{self.kind}\nDataset:{self.dataset or self.name}\n"


def spec_from(document: Mapping[str, Any], where: Path) -> TaskSpec:
    """The task a mapping describes; `where` is what an error names.

    Raises:
        TaskError: an unknown key, a value of the wrong kind, or an empty label set.
    """
    if "labels" in document and not document["labels"]:
        raise TaskError(
            f"{where} gives an empty label set",
            hint="list the labels, or leave `labels` away to have them found in the rows",
        )
    try:
        return _adapter().validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TaskError(
            f"{where}: {key}: {plain(first)}",
            hint="keys are " + ", ".join(field.name for field in fields(TaskSpec)),
        ) from error


@functools.cache
def _adapter() -> TypeAdapter[TaskSpec]:
    return TypeAdapter(TaskSpec)


def read_spec(path: Path, *, defaults: Mapping[str, Any] | None = None) -> TaskSpec:
    """Reads a task's YAML; `defaults` fill the keys it leaves out.

    Raises:
        TaskError: not YAML, an unknown key, a value of the wrong kind, or an empty label set.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise TaskError(f"{path} is not YAML{line}", hint=_yaml_hint(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"cannot read {path}: {error!s:.160}", hint="check the file") from error
    if not isinstance(document, dict):
        raise TaskError(
            f"{path} does not describe a task: it holds no keys",
            hint="write lines such as `instruction: ...` and `labels: [a, b]`",
        )
    return spec_from({**(defaults or {}), **document}, path)


def builtin_names() -> tuple[str, ...]:
    """Names of the tasks described in `specs/`, sorted."""
    return tuple(sorted(_builtin_paths()))


def builtin_spec(name: str) -> TaskSpec | None:
    """The built-in task of that name, upper and lower case and punctuation aside, or None."""
    path = {plain_name(known): path for known, path in _builtin_paths().items()}.get(
        plain_name(name)
    )
    return _read_builtin(path) if path else None


def normal_form(text: str) -> str:
    """The text by which two rows or two labels count as the same: case and white space aside."""
    return re.sub(r"\s+", " ", text).strip().casefold()


def near_names(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Up to three known names that look like `name`, nearest first."""
    plain = {plain_name(one): one for one in known}
    return tuple(plain[one] for one in difflib.get_close_matches(plain_name(name), plain, n=3))


def _yaml_hint(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        return "it holds a control character; write texts as they are read"
    if isinstance(error, yaml.constructor.ConstructorError):
        return "tags such as !!python/object are not taken; write the text itself"
    return "check its indentation, and put quotes around a text with `: ` or `#`"


def unknown_task(name: str, known: Iterable[str]) -> TaskError:
    near = near_names(name, known)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return TaskError(
        f"no task is called {name!r}",
        hint=hint + "`ella tasks ls` lists the built-in ones; a folder of your own is a path",
    )


@functools.cache
def _builtin_paths() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_SPECS.glob("*.yaml"))}


@functools.cache
def _read_builtin(path: Path) -> TaskSpec:
    return read_spec(path)


def plain_name(name: str) -> str:
    """`name` by which two spellings count as one: SST-2 is sst2."""
    # Of a name such as "🎈" nothing would be left to tell it by.
    return re.sub(r"[\W_]", "", name.casefold()) or name.casefold()


class _PlainLoader(yaml.SafeLoader):
    """YAML in which True, no and 1.0 stay the texts they are: labels are texts."""


def _keep_text(loader: yaml.SafeLoader, node: yaml.Node) -> str:
    return str(loader.construct_scalar(cast(yaml.ScalarNode, node)))


for _tag in ("timestamp", "bool", "int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _keep_text)
