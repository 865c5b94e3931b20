"""A W_past file that is damaged, foreign or of a later version is refused in words."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ella_cli.adapter import Layer
from ella_cli.adapter.adapter import Source, factors_digest, layers_in_order
from ella_cli.adapter.tensor_file import TensorFile
from ella_cli.errors import PastError
from ella_cli.past import accumulate, compact, read_past
from ella_cli.past.export import export_adapter
from tests.past.conftest import SHAPES, MakeAdapter

STORES = ("factored", "dense")
Q = "model.layers.2.q"


@pytest.fixture
def written(make_adapter: MakeAdapter, tmp_path: Path) -> dict[str, Path]:
    folders = [make_adapter("a", 0), make_adapter("b", 1)]
    paths = {store: tmp_path / f"{store}.safetensors" for store in STORES}
    for store in STORES:
        accumulate(folders, paths[store], store=store)
    return paths


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same tensors under a changed record, written by the library."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["ella_past"])
    change(record)
    save_file(load_file(path), path, metadata | {"ella_past": json.dumps(record)})


@pytest.mark.parametrize("store", STORES)
def test_unknown_keys_of_a_record_are_passed_over(store: str, written: dict[str, Path]) -> None:
    digest = read_past(written[store]).digest
    rewrite(written[store], lambda record: record.update(colour="blue"))
    assert read_past(written[store]).digest == digest


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(version=6), "version 6"),
        (lambda r: r.update(digest="0" * 64), "digest"),
        (lambda r: r.update(store="sparse"), "store"),
        (lambda r: r["energy"].update(decay=-1), "decay"),
        (lambda r: r["energy"].update(kind="max"), "energy.kind"),
        (lambda r: r["tasks"][0].update(update_norm="long"), r"tasks.0.update_norm"),
        (lambda r: r["tasks"][0].pop("name"), r"tasks.0.name"),
        (lambda r: r["tasks"][0].update(update_norm=math.nan), r"tasks.0.update_norm"),
        (lambda r: r["tasks"][1].update({"lambda": math.inf}), r"tasks.1.lambda"),
        (lambda r: r["tasks"][1].update(order_index=-1), r"tasks.1.order_index"),
        (lambda r: r["tasks"][1].update(name="a"), "two tasks are called a"),
        (lambda r: r.update(tasks=5), "tasks"),
        (lambda r: r["tasks"][0].update(name="a\x1b[2J"), "usable name"),
        (lambda r: r["base"].update(model="a\nlicense: mit"), "usable name"),
        (lambda r: r["layers"].update({Q: {"kind": "conv", "kernel": [0]}}), "no size"),
        (lambda r: r["layers"].update({Q: {"kind": "conv", "kernel": [7]}}), "no convolution"),
    ],
)
def test_a_record_that_says_something_else_is_refused(
    store: str, change: Callable[[dict[str, Any]], object], said: str, written: dict[str, Path]
) -> None:
    rewrite(written[store], change)
    with pytest.raises(PastError, match=said):
        read_past(written[store])


@pytest.mark.parametrize("wrong", [math.nan, -math.inf])
def test_factors_that_are_not_finite_are_refused_when_they_are_used(
    wrong: float, written: dict[str, Path]
) -> None:
    path = written["factored"]
    tensors = load_file(path)
    tensors[f"1.{Q}.A"][0, 0] = wrong
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["ella_past"])
    save_file(tensors, path)
    file = TensorFile.open(path, PastError)
    scale = record["blocks"][1]["scale"]
    shapes = {name: tensors[f"1.{name}.B"].shape[0] for name in SHAPES}
    sources = {
        name: Source(f"1.{name}.B", f"1.{name}.A", (rows, 29), 2, scale, Layer())
        for name, rows in sorted(shapes.items(), key=lambda pair: layers_in_order(pair[0]))
    }
    digest = factors_digest(file, sources)
    record["blocks"][1]["digest"] = digest
    contents = ["factored", ["sum", None, None], [block["digest"] for block in record["blocks"]]]
    text = json.dumps(contents, separators=(",", ":"))
    record["digest"] = hashlib.sha256(text.encode()).hexdigest()
    save_file(tensors, path, metadata | {"ella_past": json.dumps(record)})
    past = read_past(path)
    for use in (past.verify, lambda: past.delta(Q), lambda: compact(path)):
        with pytest.raises(PastError, match=rf"1\.{Q}\.A is not finite"):
            use()


def test_matrices_that_are_not_finite_are_refused_when_they_are_used(
    written: dict[str, Path],
) -> None:
    path = written["dense"]
    tensors = load_file(path)
    tensors[f"{Q}.delta"][3, 4] = math.nan
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["ella_past"])
    for name, tensor in tensors.items():
        record["checksums"][name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    contents = ["dense", ["sum", None, None], sorted(record["checksums"].items())]
    text = json.dumps(contents, separators=(",", ":"))
    record["digest"] = hashlib.sha256(text.encode()).hexdigest()
    save_file(tensors, path, metadata | {"ella_past": json.dumps(record)})
    past = read_past(path)
    with pytest.raises(PastError, match=rf"{Q}\.delta is not finite"):
        export_adapter(past, path.parent / "out", max_rank=2)


def test_names_may_be_of_any_script_and_hold_any_space(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    past = accumulate([make_adapter("感情\u3000分析 👩\u200d💻")], tmp_path / "w").past
    assert read_past(tmp_path / "w").tasks == past.tasks
    assert past.tasks[0].name == "感情\u3000分析 👩\u200d💻"
    odd = accumulate([make_adapter("a\x1bb\n", 1)], tmp_path / "v").past
    assert odd.tasks[0].name == "a?b?"


def test_other_files_are_no_past(written: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PastError, match="there is no W_past file"):
        read_past(tmp_path / "none")
    with pytest.raises(PastError, match="there is no W_past file"):
        read_past(tmp_path)
    with pytest.raises(PastError, match="is no W_past file"):
        read_past(tmp_path / "a" / "adapter_model.safetensors")
    metadata = {"ella_past": "{" * 10}
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(PastError, match="damaged record"):
        read_past(tmp_path / "x.safetensors")


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("change", ["another-name", "another-type", "another-shape", "one-less"])
def test_tensors_that_the_record_does_not_know_are_refused(
    store: str, change: str, written: dict[str, Path]
) -> None:
    path = written[store]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    first = min(tensors)
    tensor = tensors.pop(first)
    if change == "another-name":
        tensors["zzz"] = tensor
    elif change == "another-type":
        tensors[first] = tensor.to(torch.int32)
    elif change == "another-shape":
        tensors[first] = tensor.flatten()
    save_file(tensors, path, metadata)
    with pytest.raises(PastError, match="is not what a"):
        read_past(path)


@pytest.mark.parametrize("store", STORES)
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_in_the_tensors_is_noticed_when_they_are_used(
    store: str, place: float, bit: int, written: dict[str, Path]
) -> None:
    path = written[store]
    sound = path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    content = bytearray(sound)
    content[header + int(place * (len(content) - header))] ^= 1 << bit
    broken = path.with_suffix(".broken")
    broken.write_bytes(content)
    noticed = 0
    past = read_past(broken)
    for use in (past.operand, past.delta):
        for name in past.names:
            try:
                use(name)
            except PastError:
                noticed += 1
    assert noticed >= 2
    with pytest.raises(PastError, match="not match"):
        past.verify()
