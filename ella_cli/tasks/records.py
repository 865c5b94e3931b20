"""Files of examples, CSV, TSV, JSON or JSONL, read into records that know their line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ella_cli.errors import TaskError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")

# Characters; what the csv module takes for a mistake, a long document has.
_LONGEST_FIELD = 2**31 - 1

_QUOTED = re.compile(r'"(?:[^"]|"")*"')

# Keys under which published files keep their list of examples: O-LoRA's, and common wrappers.
_LIST_KEYS = ("Instances", "instances", "data", "examples", "rows")


@dataclass(frozen=True)
class Record:
    """One example as the file has it; `place` names it in an error: "line 7" or "entry 3"."""

    place: str
    fields: Mapping[str, Any]


def read_records(path: Path) -> tuple[Record, ...]:
    """
    Raises:
        TaskError: unreadable, not UTF-8, empty, or a line that is not a record, by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8 text (byte {error.start})",
            hint=f"convert it: iconv -f latin1 -t utf-8 {path.name}",
        ) from error
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror}", hint="check the file") from error
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        records = tuple(_csv_records(path, text, "\t" if suffix == ".tsv" else None))
    elif suffix == ".jsonl":
        records = tuple(_line_records(path, text))
    else:
        records = tuple(_json_records(path, text))
    if not records:
        raise TaskError(f"{path} holds no rows", hint="put one example on each line")
    return records


def _line_records(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            raise TaskError(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})",
                hint='a line looks like {"text": "...", "label": "..."}',
            ) from error
        except (ValueError, RecursionError) as error:
            raise _too_odd(f"{path}, line {number}", error) from error
        yield _record(path, f"line {number}", value)


def _json_records(path: Path, text: str) -> Iterator[Record]:
    if not text.strip():
        return
    try:
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        # Some published .json files hold one object a line.
        if error.msg == "Extra data":
            yield from _line_records(path, text)
            return
        raise TaskError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})",
            hint='the file holds a list: [{"text": "...", "label": "..."}, ...]',
        ) from error
    except (ValueError, RecursionError) as error:
        raise _too_odd(str(path), error) from error
    if isinstance(document, dict):
        key = next((key for key in _LIST_KEYS if isinstance(document.get(key), list)), None)
        if key is None:
            raise TaskError(
                f"{path} holds one object, with keys {', '.join(map(repr, list(document)[:6]))}",
                hint="it should hold a list of examples, or a list under `Instances` or `data`",
            )
        document = document[key]
    if not isinstance(document, list):
        raise TaskError(f"{path} holds {document!r:.40}", hint="it should hold a list of examples")
    for number, value in enumerate(document, start=1):
        yield _record(path, f"entry {number}", value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON itself would keep the last of two equal keys, and nobody would know."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {twice!r:.40} twice")
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no value; leave the cell empty, or the row out")


def _too_odd(where: str, error: Exception) -> TaskError:
    """JSON, but no example: a key twice, a number of thousands of digits, lists within lists."""
    hint = "an example holds texts and labels only, each under its own name"
    return TaskError(f"{where}: {error!s:.100}", hint=hint)


def _csv_records(path: Path, text: str, delimiter: str | None) -> Iterator[Record]:
    first_line = text.partition("\n")[0]
    # Spreadsheets in much of Europe write semicolons into .csv files.
    delimiter = delimiter or max(",;\t", key=first_line.count)
    rows = _separated(path, text, delimiter)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if len(header) < 2:
        raise TaskError(
            f"{path} has no second column, so no answers" if text.strip() else f"{path} is empty",
            hint="its first line names the columns, such as `text,label`",
        )
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise TaskError(
            f"{path} has two columns called {twice!r}", hint="rename one in its first line"
        )
    for line, values in rows:
        if not values:
            continue
        if len(values) != len(header):
            raise TaskError(
                f"{path}, line {line}: {len(values)} fields under "
                f"{len(header)} columns ({', '.join(header)})",
                hint='put quotes around a text that holds a comma: "a, b",label',
            )
        yield Record(f"line {line}", dict(zip(header, values, strict=True)))


def _separated(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's last line, and its fields.

    Many a file with tabs knows no quoting, and a quote that opens there and closes lines below
    would swallow all between. So where every line has as many fields as the first, a line is a row.
    """
    if delimiter == "\t":
        lines = [line.removesuffix("\n").split("\t") for line in io.StringIO(text, newline=None)]
        if len({len(fields) for fields in lines if fields != [""]}) == 1:
            for number, fields in enumerate(lines, start=1):
                yield number, [] if fields == [""] else [*map(_unquoted, fields)]
            return
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            yield reader.line_num, values
    except csv.Error as error:
        raise TaskError(
            f"{path}, line {reader.line_num}: {error}", hint="check the quotes on that line"
        ) from error


def _unquoted(field: str) -> str:
    """Without the quotes around all of it, if there are; others are text."""
    return field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field


def _record(path: Path, place: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise TaskError(
            f"{path}, {place}: {value!r:.40} is not an object",
            hint='an example looks like {"text": "...", "label": "..."}',
        )
    return Record(place, value)
