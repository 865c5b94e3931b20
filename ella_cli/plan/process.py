"""What the process itself takes: interpreter and libraries, before any model."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def process_bytes() -> int:
    """The most that this process has had in memory, with all that training imports.

    It is the base that the plan's parts come on top of only where nothing else was done yet.
    """
    # What `ella run` imports before it loads a model.
    import ella_cli.training.task  # noqa: F401

    return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has had resident at once."""
    if _STATUS.is_file():
        # Linux hands getrusage's figure on to a child; this one begins with the program.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
