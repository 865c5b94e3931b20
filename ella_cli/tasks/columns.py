"""Which fields of a record are the text and the answer, and the rows they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ella_cli.errors import TaskError
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
        columns: the user's own choice; `text` may be a pattern such as "{title}: {body}".
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
    pattern = columns.text if "{" in columns.text else "{" + columns.text + "}"
    return [_row(record, path, pattern, columns.answer) for record in records], notes


def _find_columns(fields: Mapping[str, Any], path: Path) -> tuple[Columns, list[str]]:
    by_name = {name.strip().casefold(): name for name in fields}
    text = next((by_name[name] for name in TEXT_NAMES if name in by_name), None)
    answer = next((by_name[name] for name in ANSWER_NAMES if name in by_name), None)
    if text and answer:
        # Alpaca's files put the question into `instruction` and what it is about into `input`.
        if "instruction" in by_name and text.casefold() == "input":
            return Columns(text=f"{{{by_name['instruction']}}}\n{{{text}}}", answer=answer), []
        return Columns(text=text, answer=answer), []
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


def _row(record: Record, path: Path, pattern: str, answer: str) -> Row:
    try:
        text = pattern.format_map(_Fields(record.fields))
        value = _as_text(record.fields[answer])
    except KeyError as error:
        name = error.args[0]
        raise TaskError(
            f"{path}, {record.place}: no {name!r} among {', '.join(map(repr, record.fields))}",
            hint=_TASK_YAML,
        ) from error
    except (ValueError, IndexError, AttributeError) as error:
        raise TaskError(
            f"{path}: {pattern!r} is not a pattern over column names ({error})",
            hint="write such as `{title}: {body}`",
        ) from error
    except TypeError as error:
        raise TaskError(f"{path}, {record.place}: {error}", hint=_TASK_YAML) from error
    return _checked(text, value, record, path)


class _Fields(dict[str, str]):
    """Field values as text, one by one, so that only those a pattern names must be texts."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def __missing__(self, name: str) -> str:
        return _as_text(self._fields[name])


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
    return Row(text, answer.strip())


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if value is None:
        return ""
    raise TypeError(f"{value!r:.40} is not a text")
