"""A finished run's folder, small and made here: no model, no tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy
import pytest
from rich.console import Console

ORDER = ("dbpedia", "amazon", "yahoo", "agnews")
MATRIX = (
    (0.80, 0.10, 0.05, 0.20),
    (0.60, 0.40, 0.10, 0.25),
    (0.50, 0.35, 0.45, 0.40),
    (0.45, 0.30, 0.40, 0.85),
)
BASE = (0.05, 0.15, 0.00, 0.10)
SINGLE = (0.80, 0.45, 0.50, 0.80)
ROWS = 20

WriteRun = Callable[..., Path]


def rows_of(score: float, seed: int) -> list[float]:
    """ROWS zeros and ones whose mean is `score`, shuffled."""
    right = round(score * ROWS)
    rows = numpy.array([1.0] * right + [0.0] * (ROWS - right))
    numpy.random.default_rng(seed).shuffle(rows)
    return [float(row) for row in rows]


def curves(position: int, lam: float, *, steps: int = 40, peak: float = 3.0) -> dict[str, Any]:
    """CE falls, the update grows, and with it the penalty (none on the first task)."""
    step = list(range(1, steps + 1))
    ce = [2.5 * 0.93**s + 0.3 + 0.05 * ((s * 7) % 5) for s in step]
    norm = [peak * s / steps for s in step]
    penalty = [0.0 if position == 1 else 1e-5 * n * n for n in norm]
    return {
        "step": step,
        "ce": ce,
        "penalty": penalty,
        "weighted_penalty": [lam * p for p in penalty],
        "update_norm": norm,
    }


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Gives a function of name, method, lam, seed and changes to results.json -> the folder."""

    def write(
        name: str = "o1", method: str = "ella", lam: float = 1e4, seed: int = 0, **changes: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        results: dict[str, Any] = {
            "order": list(ORDER),
            "matrix": [list(row) for row in MATRIX],
            "base": list(BASE),
            "single": list(SINGLE),
            "method": method,
            "lambda": lam,
            "seed": seed,
            "decode": "generate",
            "test_rows": dict.fromkeys(ORDER, ROWS),
        }
        results |= changes
        if "row_scores" not in results:
            stages = dict(zip(ORDER, results["matrix"], strict=True))
            stages |= {"base": results["base"], "single": results["single"]}
            results["row_scores"] = {
                stage: {
                    task: rows_of(score, index)
                    for index, (task, score) in enumerate(zip(ORDER, row, strict=True))
                    if score is not None
                }
                for stage, row in stages.items()
                if row is not None
            }
        (folder / "results.json").write_text(json.dumps(results))
        settings = {
            "command": ["ella", "run", "--order", "1", "--out", name],
            "model": "smollm2",
            "settings": {"lr": 1e-3, "rank": 8, "targets": ["q_proj", "v_proj"], "seed": seed},
            "versions": {"torch": "2.13.0", "ella": "0.1.0"},
        }
        (folder / "run.json").write_text(json.dumps(settings))
        for position, task in enumerate(ORDER, start=1):
            write_manifest(
                folder / "stages" / f"{position:02d}-{task}", task, position, method, lam
            )
        return folder

    return write


def write_manifest(
    folder: Path, task: str, position: int, method: str, lam: float, **changes: Any
) -> None:
    drawn = curves(position, lam)
    manifest: dict[str, Any] = {
        "format": 1,
        "task": task,
        "order_index": position - 1,
        "method": method,
        "lambda": lam,
        "seed": 0,
        "rank": 8,
        "scale": 4.0,
        "base": {"model": "smollm2", "fingerprint": "a1b2c3d4e5f60718"},
        "data": {"fingerprint": f"data-of-{task}-0123456789", "train_rows": 320},
        "past": {
            "digest": None if position == 1 else f"past-before-{task}-0123",
            "tasks": list(ORDER[: position - 1]),
        },
        "update_norm": drawn["update_norm"][-1],
        "update_norms": {"layers.0.q_proj": 1.0, "layers.0.v_proj": 2.0},
        "curves": drawn,
        "seconds": 101.2,
        "versions": {"torch": "2.13.0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ella.json").write_text(json.dumps(manifest | changes))


def printed(*shown: object, width: int = 100) -> str:
    out = StringIO()
    Console(file=out, width=width).print(*shown)
    return out.getvalue()
