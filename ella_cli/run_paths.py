"""A run's folder: what lies where.

runs/o1/run.json                 settings, order, fingerprints, versions, command
runs/o1/stages/01-dbpedia/       a stock PEFT adapter with its ella.json
runs/o1/wpast.safetensors        the past after the last finished stage
runs/o1/scores/01-dbpedia/*.json one cell of the matrix a file
runs/o1/results.json             the matrix and its metrics
runs/o1/report.html              what people look at
runs/o1/.run.lock                held while a process is at work here
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RESULTS = "results.json"


@dataclass(frozen=True)
class RunPaths:
    """The paths of one run, whether or not they are there."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        return self.path / ".run.lock"

    @property
    def stages(self) -> Path:
        return self.path / "stages"

    @property
    def past(self) -> Path:
        return self.path / "wpast.safetensors"

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def stage(self, index: int, name: str) -> Path:
        return self.stages / stage_name(index, name)


def stage_name(index: int, name: str) -> str:
    """`01-dbpedia` for the first: stages sort as they were trained, up to 99 of them."""
    return f"{index + 1:02d}-{name}"
