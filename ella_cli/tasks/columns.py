"""Which fields of a record are the text and the answer, and the rows they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from ella_cli.errors import TaskError
from ella_cli.names import has_half_characters
from ella_cli.tasks.records import Record
from ella_cli.tasks.rows import Row
from ella_cli.tasks.spec import Columns

TEXT_NAMES = (
    "text", "sentence", "input", "prompt", "question", "query", "review", "content", "document",
    "passage", "paragraph", "utterance", "message", "source",
)  # fmt: skip
ANSWER_NAMES = (
    "label", "answer", "output", "target", "class", "category", "completion", "response",
    "summary", "sentiment", "intent", "topic", "labels",
)  # fmt: skip
_CHAT_NAMES = ("messages", "conversations", "conversation")

_TASK_YAML = "name them in task.yaml beside it: `columns: {text: ..., answer: ...}`"


def rows_of(
    records: Sequence[Record], path: Path, columns: Columns | None
) -> tuple[list[Row], list[str]]:
    """The rows, and notes about guesses the user should confirm.

    Args:
        records: what `read_records` gave; at least one.
        path: the file, for errors.
        columns: the user's own choice; `text` may be a pattern such as "{title}: {body}", of names
            in braces and nothing else.
            Without it the columns are found by name, or are the only two there are.

    Raises:
        TaskError: the columns cannot be told, or a record lacks one, by its place.
    """
    first = records[0].fields
    if columns is None:
        chat = next((name for name in _CHAT_NAMES if isinstance(first.get(name), list)), None)
        if chat is not None:
            return [_chat_row(record, chat, path) for record in records], []
    columns, notes = (columns, []) if columns else _find_columns(first, path)
    parts = _parts(columns.text, first, path)
    return [_row(record, path, parts, columns.answer) for record in records], notes


# A text and the column that follows it, or None: "{title}: {body}" is ("", title), (": ", body).
_Parts = Sequence[tuple[str, str | None]]


def _parts(text: str, fields: Mapping[str, Any], path: Path) -> _Parts:
    """
    Raises:
        TaskError: a pattern with anything but names in its braces; it may be a stranger's.
    """
    if text in fields or "{" not in text:
        return [("", text)]
    try:
        found = [
            (literal, name, bool(form or conversion))
            for literal, name, form, conversion in Formatter().parse(text)
        ]
    except ValueError as error:
        raise _no_pattern(text, path) from error
    if any(formed or name == "" for _, name, formed in found):
        raise _no_pattern(text, path)
    return [(literal, name) for literal, name, _ in found]


def _no_pattern(text: str, path: Path) -> TaskError:
    return TaskError(
        f"{path}: {text!r:.80} is not a pattern over column names",
        hint="write such as `{title}: {body}`",
    )


def _find_columns(fields: Mapping[str, Any], path: Path) -> tuple[Columns, list[str]]:
    by_name = {name.strip().casefold(): name for name in fields}
    text = next((by_name[name] for name in TEXT_NAMES if name in by_name), None)
    answer = next((by_name[name] for name in ANSWER_NAMES if name in by_name), None)
    if text and answer:
        # Alpaca's files put the question into `instruction` and what it is about into `input`.
        if "instruction" in by_name and text.casefold() == "input":
            return Columns(text=f"{{{by_name['instruction']}}}\n{{{text}}}", answer=answer), []
        # Two of a kind may both be meant, as question and passage.
        others = [
            by_name[name]
            for name in (*TEXT_NAMES, *ANSWER_NAMES)
            if name in by_name and by_name[name] not in (text, answer)
        ]
        notes = []
        if others:
            notes.append(
                f"{path.name}: took column {text!r} for the text and {answer!r} for the answer, "
                f"and left {', '.join(map(repr, others))} out; " + _TASK_YAML
            )
        return Columns(text=text, answer=answer), notes
    if "instruction" in by_name and answer:
        return Columns(text=by_name["instruction"], answer=answer), []
    if len(fields) == 2:
        text, answer = fields
        return Columns(text=text, answer=answer), [
            f"{path.name}: took column {text!r} for the text and {answer!r} for the answer; "
            + _TASK_YAML
        ]
    raise TaskError(
        f"cannot tell text from answer in {path}: its columns are {', '.join(map(repr, fields))}",
        hint=_TASK_YAML,
    )


def _row(record: Record, path: Path, parts: _Parts, answer: str) -> Row:
    try:
        text = "".join(
            literal + ("" if name is None else _as_text(record.fields[name]))
            for literal, name in parts
        )
        value = _as_text(record.fields[answer])
    except KeyError as error:
        name = error.args[0]
        raise TaskError(
            f"{path}, {record.place}: no {name!r} among {', '.join(map(repr, record.fields))}",
            hint=_TASK_YAML,
        ) from error
    except TypeError as error:
        raise TaskError(f"{path}, {record.place}: {error}", hint=_TASK_YAML) from error
    return _checked(text, value, record, path)


def _chat_row(record: Record, name: str, path: Path) -> Row:
    """The last reply is the answer; what came before it is the text."""
    turns: list[tuple[str, str]] = []
    messages = record.fields.get(name)
    for message in messages if isinstance(messages, list) else ():
        role = message.get("role", message.get("from")) if isinstance(message, dict) else None
        content = message.get("content", message.get("value")) if role else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise TaskError(
                f"{path}, {record.place}: a message lacks role or content",
                hint='write {"role": "user", "content": "..."}',
            )
        turns.append((role, content))
    if len(turns) < 2 or turns[-1][0] not in ("assistant", "gpt", "model"):
        raise TaskError(
            f"{path}, {record.place}: the chat does not end with the assistant's reply",
            hint="a row is one or more messages and then the reply to learn",
        )
    asked = turns[:-1]
    several = sum(role not in ("system", "developer") for role, _ in asked) > 1
    lines = [
        f"{role}: {content}" if several and role != "system" else content for role, content in asked
    ]
    return _checked("\n".join(lines), turns[-1][1], record, path)


def _checked(text: str, answer: str, record: Record, path: Path) -> Row:
    for what, value in (("text", text), ("answer", answer)):
        if not value.strip():
            raise TaskError(
                f"{path}, {record.place}: the {what} is empty", hint="fill it in or drop the row"
            )
        if has_half_characters(value):
            raise TaskError(
                f"{path}, {record.place}: the {what} holds half a character (a lone surrogate)",
                hint="it was cut in the middle of an emoji; take it out",
            )
    return Row(text, answer.strip())


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if value is None:
        return ""
    raise TypeError(f"{value!r:.40} is not a text")
