"""W_past: what all tasks so far added to the weights, as a file people can keep.

    Past, read_past     the past, dense or in factors; lazy and memory-mapped
    accumulate          adapters -> a file: add, drop, replace, shrink
    compact             factors of many tasks -> the fewest that hold the same sum

docs/file-formats.md specifies the file.
"""

from __future__ import annotations

from ella_cli.past.accumulation import Accumulated, accumulate
from ella_cli.past.compaction import Compacted, compact, compactable
from ella_cli.past.past import Past, read_past
from ella_cli.past.record import Base, PastTask

__all__ = [
    "Accumulated",
    "Base",
    "Compacted",
    "Past",
    "PastTask",
    "accumulate",
    "compact",
    "compactable",
    "read_past",
]
