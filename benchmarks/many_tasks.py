"""Many small tasks in a row: is there still room to learn, and what does each one cost?

    python -m benchmarks.many_tasks make DATA TASKS --count 100
    ella run --order "$(cat TASKS/order.txt)" --model stories260k ... -o RUN
    python -m benchmarks.many_tasks table RUN [RUN ...]

A task is to tell two classes of DBpedia apart, or, where its 91 pairs do not suffice, of AG News
and Yahoo; a seed puts them in order. `table` reads finished runs and prints, for each tenth of the
order, what was learned and kept, how long the update is, λ and the seconds a task took.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from ella_cli.files import read_json

_SOURCES = ("dbpedia", "agnews", "yahoo")  # the easier first
_PARTS = 10


def make(data: Path, out: Path, count: int, seed: int) -> None:
    pairs = [
        (source, *pair)
        for source in _SOURCES
        for pair in combinations(json.loads((data / source / "labels.json").read_text()), 2)
    ]
    if count > len(pairs):
        raise SystemExit(f"there are only {len(pairs)} pairs")
    names = []
    for source, one, other in random.Random(seed).sample(pairs[:count], count):
        name = re.sub(r"[^a-z0-9]+", "-", f"{source} {one} {other}".lower()).strip("-")
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.json").write_text(json.dumps([one, other]))
        for split in ("train", "test"):
            # Not splitlines, which also parts at U+2028 inside a text.
            lines = (data / source / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
            chosen = [line for line in lines if line and json.loads(line)["label"] in (one, other)]
            (folder / f"{split}.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")
        names.append(str(folder.resolve()))
    (out / "order.txt").write_text(",".join(names))
    print(f"{count} of {len(pairs)} pairs in {out}; their order is in {out / 'order.txt'}")


def parts_of(run: Path) -> list[dict[str, Any]]:
    """The order in at most ten parts of consecutive tasks, with the means of each."""
    results = read_json(run / "results.json")
    manifests = [read_json(path) for path in (run / "stages").glob("*/ella.json")]
    manifests.sort(key=lambda manifest: manifest["order_index"])
    learned = [results["matrix"][i][i] for i in range(len(manifests))]
    size = math.ceil(len(manifests) / _PARTS)
    return [
        {
            "tasks": f"{first + 1} to {min(first + size, len(manifests))}",
            "learned": mean(learned[first : first + size]),
            "kept": mean(results["matrix"][-1][first : first + size]),
            "update_norm": mean(m["update_norm"] for m in manifests[first : first + size]),
            "lambda": mean(m["lambda"] for m in manifests[first : first + size]),
            "seconds": mean(m["seconds"] for m in manifests[first : first + size]),
        }
        for first in range(0, len(manifests), size)
    ]


def table(runs: list[Path]) -> None:
    for run in runs:
        results = read_json(run / "results.json")
        size = (run / "wpast.safetensors").stat().st_size
        print(f"\n{run.name}: OA {results['oa']:.3f}, BWT {results['bwt']:+.3f}, ", end="")
        print(f"learned {results['learned']:.3f}; the past is {size / 1e6:.2f} MB\n")
        print("| tasks | learned | at the end | ‖ΔW‖ | λ | seconds a task |")
        print("|---|---|---|---|---|---|")
        for part in parts_of(run):
            print(
                f"| {part['tasks']} | {part['learned']:.3f} | {part['kept']:.3f} | "
                f"{part['update_norm']:.2f} | {part['lambda']:.3g} | {part['seconds']:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("data", type=Path)
    maker.add_argument("out", type=Path)
    maker.add_argument("--count", type=int, default=100)
    maker.add_argument("--seed", type=int, default=0)
    shower = commands.add_parser("table")
    shower.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "make":
        make(args.data, args.out, args.count, args.seed)
    else:
        table(args.runs)


if __name__ == "__main__":
    main()
