"""A header is believed when sizes, dtypes and offsets agree; what is written is safetensors."""

from __future__ import annotations

import json
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ella_cli.adapter.tensor_file import FLOATS, TensorFile
from ella_cli.adapter.tensor_header import Entry
from ella_cli.adapter.tensor_writer import TensorFileWriter
from ella_cli.errors import AdapterError, PastError


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, stop: int, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


UNSOUND = {
    "empty": b"",
    "seven-bytes": b"1234567",
    "header-longer-than-the-file": struct.pack("<Q", 100) + b"{}",
    "header-of-exabytes": struct.pack("<Q", 1 << 63) + b"{}",
    "not-json": b"\x05\0\0\0\0\0\0\0{abc}",
    "deeply-nested": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a-number-of-many-digits": struct.pack("<Q", 9000) + b"9" * 9000,
    "a-list": b"\x02\0\0\0\0\0\0\0[]",
    "not-utf8": b"\x02\0\0\0\0\0\0\0\xff\xfe",
}
HEADERS: dict[str, tuple[object, int]] = {
    "overlapping": ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "the-same-bytes-twice": ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
    "a-hole": ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
    "bytes-left-over": ({"a": entry(0, 8)}, 12),
    "bytes-missing": ({"a": entry(0, 8)}, 4),
    "beyond-the-file": ({"a": entry(0, 1 << 40, (1 << 38,))}, 8),
    "a-shape-larger-than-its-bytes": ({"a": entry(0, 8, (1 << 40, 1 << 40))}, 8),
    "a-product-that-wraps": ({"a": entry(0, 0, (1 << 32, 1 << 32))}, 0),
    "a-negative-side": ({"a": entry(0, 8, (-1, -2))}, 8),
    "a-fraction-as-side": ({"a": entry(0, 8, (2.0,))}, 8),
    "truth-as-side": ({"a": entry(0, 4, (True,))}, 4),
    "text-as-shape": ({"a": entry(0, 8, "2")}, 8),
    "many-sides": ({"a": entry(0, 4, (1,) * 100)}, 4),
    "reversed-offsets": ({"a": entry(8, 0)}, 8),
    "an-unknown-dtype": ({"a": entry(0, 8, (2,), "F33")}, 8),
    "a-list-as-dtype": ({"a": entry(0, 8, (2,), ["F32"])}, 8),
    "no-description": ({"a": 7}, 0),
    "metadata-of-numbers": ({"__metadata__": {"a": 1}}, 0),
    "metadata-as-list": ({"__metadata__": []}, 0),
}


@pytest.mark.parametrize("case", [*UNSOUND, *HEADERS, "a-name-twice"])
def test_an_unsound_file_is_refused_before_anything_is_read(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if case in UNSOUND:
        path.write_bytes(UNSOUND[case])
    elif case in HEADERS:
        header, size = HEADERS[case]
        write(path, header, bytes(size))
    else:
        one = json.dumps(entry(0, 8))
        write(path, f'{{"a":{one},"a":{one}}}'.encode(), bytes(8))
    with pytest.raises(PastError, match="not a sound safetensors file") as caught:
        TensorFile.open(path, PastError)
    assert len(caught.value.message) < 500


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_changed_in_a_header_what_opens_here_opens_in_the_library(
    data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, path, {"k": "v"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 33))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = TensorFile.open(path, AdapterError)
    except AdapterError:
        return
    try:
        with safe_open(path, "pt") as theirs:
            assert set(theirs.keys()) == set(file.entries)
            for name in file.entries:
                assert torch.equal(theirs.get_tensor(name), file.read(name))
    except (SafetensorError, AttributeError):
        # The library is stricter about names of dtypes that torch lacks, and about metadata.
        return


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=st.lists(
        st.tuples(
            st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(sorted(FLOATS))
        ),
        max_size=5,
    ),
    comment=st.text(max_size=30).filter(lambda text: "\0" not in text),
)
def test_written_tensors_and_metadata_come_back_to_the_bit(
    shapes: list[tuple[list[int], str]], comment: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {f"t{i}": torch.randn(*s).to(FLOATS[d]) for i, (s, d) in enumerate(shapes)}
    layout = {f"t{i}": Entry(d, tuple(s)) for i, (s, d) in enumerate(shapes)}
    with TensorFileWriter(path, layout, {"comment": comment + " " * 40}) as writer:
        for tensor in tensors.values():
            writer.write(tensor)
        writer.finish({"comment": comment})
    file = TensorFile.open(path, PastError)
    theirs = load_file(path)
    assert file.metadata == {"comment": comment}
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
        assert torch.equal(file.map(name), tensor)
        assert torch.equal(theirs[name], tensor)


def test_data_begins_on_a_page_and_is_copied_from_file_to_file(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    tensors = {"a": torch.randn(3000, 7), "b": torch.randn(5)}
    save_file(tensors, source)
    file = TensorFile.open(source, PastError)
    first, last = file.entries["a"], file.entries["b"]
    layout = {"b": Entry("F32", (5,)), "a": Entry("F32", (3000, 7))}
    with TensorFileWriter(tmp_path / "b.safetensors", layout, {}) as writer:
        for part in (last, first):
            writer.copy(file, part.start, part.stop)
        writer.finish({})
    copied = TensorFile.open(tmp_path / "b.safetensors", PastError)
    assert copied.entries["b"].start % 4096 == 0
    assert all(torch.equal(copied.read(name), tensors[name]) for name in tensors)


def test_rows_may_come_from_any_thread_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(40, 7), "b": torch.randn(40, 3).to(torch.bfloat16)}
    layout = {"a": Entry("F32", (40, 7)), "b": Entry("BF16", (40, 3))}
    rows = [(name, row) for row in reversed(range(0, 40, 8)) for name in layout]
    with TensorFileWriter(path, layout, {}) as writer:

        def write(part: tuple[str, int]) -> None:
            name, row = part
            block = tensors[name][row : row + 8]
            writer.write_part(name, row * tensors[name][0].nbytes, block)

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(write, rows))
        writer.finish({})
    theirs = load_file(path)
    assert all(torch.equal(theirs[name], tensors[name]) for name in tensors)


def test_an_unfinished_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with TensorFileWriter(path, {"a": Entry("F32", (4,))}, {}) as writer:
        writer.write(torch.ones(4))
    with pytest.raises(PastError):
        TensorFile.open(path, PastError)


def test_an_open_file_outlives_its_replacement_and_a_view_cannot_write_to_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4)}, path)
    file = TensorFile.open(path, PastError)
    view = file.map("a")
    view.zero_()
    save_file({"a": torch.full((4,), 2.0)}, tmp_path / "y.safetensors")
    (tmp_path / "y.safetensors").replace(path)
    assert file.read("a").tolist() == [1.0] * 4
    assert load_file(path)["a"].tolist() == [2.0] * 4


def test_tensors_that_are_no_floats_are_copied_but_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4, dtype=torch.int64)}, path)
    file = TensorFile.open(path, PastError)
    with pytest.raises(PastError, match="I64"):
        file.read("a")
    assert len(b"".join(file.raw(file.entries["a"].start, file.entries["a"].stop))) == 32


def test_a_missing_file_is_an_error_of_the_kind_asked_for(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="cannot read"):
        TensorFile.open(tmp_path / "none", AdapterError)


def test_one_file_is_read_by_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {f"t{i}": torch.full((1000,), float(i)) for i in range(8)}
    save_file(tensors, path)
    file = TensorFile.open(path, PastError)
    wrong: list[str] = []

    def check(name: str) -> None:
        if not all(torch.equal(file.read(name), tensors[name]) for _ in range(50)):
            wrong.append(name)

    threads = [threading.Thread(target=check, args=(name,)) for name in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
