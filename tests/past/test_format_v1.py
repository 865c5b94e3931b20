"""Files made from docs/file-formats.md alone are read: version 1 stays readable."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ella_cli.kernels import Factors
from ella_cli.past import accumulate, read_past
from tests.past.conftest import MakeAdapter


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def digest_of(store: str, contents: object, energy: tuple[Any, ...] = ("sum", None, None)) -> str:
    return sha(json.dumps([store, list(energy), contents], separators=(",", ":")).encode())


def record(**changes: Any) -> dict[str, str]:
    whole = {
        "version": 1,
        "energy": {"kind": "sum", "last": None, "decay": None},
        "base": {"model": "org/base", "fingerprint": "", "task_type": None,
                 "fan_in_fan_out": False},
        "tasks": [{"name": "one", "digest": "d", "update_norm": 1.5, "rank": 2, "scale": 0.5,
                   "date": "2026-01-01T00:00:00+00:00", "lambda": 10.0, "folder": "",
                   "shrink": None}],
        "layers": {}, "blocks": [], "checksums": {}, "a key of some later day": 1,
    } | changes  # fmt: skip
    return {"format": "pt", "ella_past": json.dumps(whole)}


def test_a_factored_file_written_by_the_book_is_read(tmp_path: Path) -> None:
    b, a = torch.randn(6, 2), torch.randn(2, 5).to(torch.bfloat16)
    line = f"fc 0.5 F32 {sha(raw(b))} BF16 {sha(raw(a))} [6, 5] 2\n"
    block = {"tasks": 1, "digest": sha(line.encode()), "scale": 4.0, "scales": {"fc": 0.5}}
    metadata = record(
        store="factored", blocks=[block], digest=digest_of("factored", [block["digest"]])
    )
    save_file({"0.fc.B": b, "0.fc.A": a}, tmp_path / "w", metadata)
    past = read_past(tmp_path / "w")
    past.verify()
    assert (past.store, past.energy, past.names) == ("factored", "sum", ("fc",))
    assert (past.tasks[0].name, past.tasks[0].lam) == ("one", 10.0)
    torch.testing.assert_close(past.delta("fc"), 0.5 * b @ a.float())
    assert isinstance(past.operand("fc"), Factors)


def test_a_dense_file_written_by_the_book_is_read(tmp_path: Path) -> None:
    tensors = {"fc.delta": torch.randn(6, 5), "fc.energy": torch.rand(6, 5)}
    sums = {name: sha(raw(tensor)) for name, tensor in tensors.items()}
    contents = sorted([name, checksum] for name, checksum in sums.items())
    metadata = record(
        store="dense",
        energy={"kind": "rss", "last": None, "decay": 0.5},
        checksums=sums,
        digest=digest_of("dense", contents, ("rss", None, 0.5)),
    )
    save_file(tensors, tmp_path / "w", metadata)
    past = read_past(tmp_path / "w")
    past.verify()
    assert torch.equal(past.delta("fc"), tensors["fc.delta"])
    assert torch.equal(past.operand("fc"), tensors["fc.energy"])  # type: ignore[arg-type]


def test_what_is_written_has_the_digests_of_the_book(
    make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors import safe_open

    # Three modules whose order by the book differs from that of the alphabet.
    folders = [make_adapter("a", 0), make_adapter("b", 1, alpha=8.0)]
    accumulate(folders, tmp_path / "w", store="factored")
    with safe_open(tmp_path / "w", "pt") as file:
        written = json.loads(file.metadata()["ella_past"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for index, block in enumerate(written["blocks"]):
        lines = ""
        for module in ("model.layers.2.q", "model.layers.2.v", "model.layers.10.q"):
            b, a = tensors[f"{index}.{module}.B"], tensors[f"{index}.{module}.A"]
            lines += (
                f"{module} {block['scale']!r} F32 {sha(raw(b))} F32 {sha(raw(a))} "
                f"{[b.shape[0], a.shape[1]]} {b.shape[1]}\n"
            )
        assert block["digest"] == sha(lines.encode()) == written["tasks"][index]["digest"]
    assert written["digest"] == digest_of("factored", [b["digest"] for b in written["blocks"]])
