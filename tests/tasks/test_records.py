"""Files of examples: what is read, and what a broken one says."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ella_cli.errors import TaskError
from ella_cli.tasks.records import read_records


def _read(tmp_path: Path, name: str, content: str | bytes) -> list[dict[str, object]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [dict(record.fields) for record in read_records(path)]


WANTED = [{"sentence": "a", "label": "x"}, {"sentence": "b, c", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", '{"sentence": "a", "label": "x"}\n\n{"sentence": "b, c", "label": "y"}\n'),
        ("t.json", '[{"sentence": "a", "label": "x"}, {"sentence": "b, c", "label": "y"}]'),
        (
            "t.json",
            '{"Definition": ["d"], "Positive Examples": [], "Negative Examples": [], '
            '"Instances": [{"sentence": "a", "label": "x"}, {"sentence": "b, c", "label": "y"}]}',
        ),
        ("t.json", '{"sentence": "a", "label": "x"}\n{"sentence": "b, c", "label": "y"}\n'),
        ("t.csv", 'sentence,label\na,x\n"b, c",y\n'),
        ("t.csv", "\ufeffsentence;label\r\na;x\r\nb, c;y\r\n"),
        ("t.tsv", "sentence\tlabel\na\tx\nb, c\ty\n"),
    ],
)
def test_all_formats_give_the_same_records(tmp_path: Path, name: str, content: str) -> None:
    assert _read(tmp_path, name, content) == WANTED


def test_a_quoted_field_may_hold_quotes_commas_and_line_ends(tmp_path: Path) -> None:
    assert _read(tmp_path, "t.csv", 'text,label\n"a ""b"",\nc",x\n') == [
        {"text": 'a "b",\nc', "label": "x"}
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        # No quoting: a quote is text, and swallows no line.
        ('"A\tx\nB"\ty\nC\tx\n', ['"A', 'B"', "C"]),
        ('"A" and "B"\tx\r\n\r\n5" nails\ty\r\n', ['"A" and "B"', '5" nails']),
        # Quoted as spreadsheets do.
        ('"a ""b"""\t"x"\n', ['a "b"']),
        ('"a\tb"\tx\n"c\nd"\ty\n', ["a\tb", "c\nd"]),
    ],
)
def test_quotes_in_a_file_with_tabs_swallow_no_row(
    tmp_path: Path, content: str, texts: list[str]
) -> None:
    rows = _read(tmp_path, "t.tsv", f"text\tlabel\n{content}")
    assert [row["text"] for row in rows] == texts
    assert {row["label"] for row in rows} <= {"x", "y"}


def test_a_line_ends_where_json_says_and_not_at_other_separators(tmp_path: Path) -> None:
    content = '{"text": "a\u2028b\u0085c", "label": "x"}\r\n{"text": "d", "label": "y"}\r\n'
    assert [row["text"] for row in _read(tmp_path, "t.jsonl", content)] == ["a\u2028b\u0085c", "d"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", '{"a": 1}\n[1, 2]\n', "line 2: [1, 2] is not an object"),
        ("t.jsonl", "\n\n", "holds no rows"),
        (
            "t.jsonl",
            '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n',
            "line 2: an object has the key 'a' twice",
        ),
        ("t.json", '[{"a": 1, "b": 2, "a": 3}]', "an object has the key 'a' twice"),
        ("t.jsonl", '{"a": 1}\n{"a": NaN}\n', "line 2: NaN is no value"),
        ("t.json", '[{"a": Infinity}]', "Infinity is no value"),
        ("t.json", "", "holds no rows"),
        ("t.json", "[]", "holds no rows"),
        ("t.json", '[{"a": 1},\n {"a" 2}]', "line 2: not JSON"),
        ("t.json", '{"x": 1}', "holds one object, with keys 'x'"),
        ("t.json", "3", "holds 3"),
        ("t.csv", "text,label\n", "holds no rows"),
        ("t.csv", "", "is empty"),
        ("t.csv", "text\na\n", "no second column"),
        ("t.csv", "text,label\na,x\nb, c,y\n", "line 3: 3 fields under 2 columns"),
        ("t.csv", 'text,label\na,"x\n', "line 2: "),
        ("t.tsv", "text\tlabel\na\tx\n\nb\n", "line 4: 1 fields under 2 columns"),
        ("t.tsv", "", "is empty"),
        ("t.csv", b"text,label\n\xe4,x\n", "not UTF-8"),
    ],
)
def test_a_broken_file_says_which_line(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    with pytest.raises(TaskError) as caught:
        _read(tmp_path, name, content)
    assert words in caught.value.message
    assert name in caught.value.message
    assert caught.value.hint


@given(st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9)),
                min_size=1, max_size=4))  # fmt: skip
def test_csv_gives_back_whatever_texts_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    import csv

    path = tmp_path_factory.mktemp("csv") / "t.csv"
    rows = [(_writable(text), _writable(label)) for text, label in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    read = [(record.fields["text"], record.fields["label"]) for record in read_records(path)]
    assert read == rows


def _writable(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot write, and bare carriage returns and NUL."""
    return text.encode("utf-8", "ignore").decode().replace("\r", "").replace("\0", "") or "x"


def test_what_no_reader_can_take_is_named(tmp_path: Path) -> None:
    deep, long = "[" * 100_000 + "]" * 100_000, "1" * 5000
    for name, content in (
        ("a.jsonl", f'{{"text": {deep}}}'),
        ("b.jsonl", f'{{"text": {long}}}'),
        ("c.json", deep),
        ("d.json", f'[{{"text": {long}}}]'),
    ):
        with pytest.raises(TaskError, match=name):
            _read(tmp_path, name, content)


def test_a_column_may_be_long_but_not_there_twice(tmp_path: Path) -> None:
    text = "word " * 40_000
    assert _read(tmp_path, "a.csv", f"text,label\n{text},x\n") == [{"text": text, "label": "x"}]
    # Spreadsheets leave empty columns behind.
    assert _read(tmp_path, "c.csv", "text,label,,\na,b,,\n") == [
        {"text": "a", "label": "b", "": ""}
    ]
    with pytest.raises(TaskError, match="two columns called 'label'"):
        _read(tmp_path, "b.csv", "text,label,label\na,b,c\n")
