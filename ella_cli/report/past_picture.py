"""What a run's W_past holds, as sections of its report. Only calling this loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ella_cli.report.document import Section
from ella_cli.report.results import PAST, RunResults


@dataclass(frozen=True)
class PastPicture:
    sections: tuple[Section, ...]
    json: Mapping[str, Any]


def picture_past(run: RunResults) -> PastPicture | None:
    """None where the run kept no W_past."""
    path = run.path / PAST
    if not path.is_file():
        return None
    return None
