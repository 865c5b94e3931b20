"""What a run's W_past holds, as sections of its report. Only calling this loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ella_cli.report.document import Section, Words
from ella_cli.report.inspected_curvature import sequence_rise_section
from ella_cli.report.inspected_past import collision_section, energy_section, spectrum_section
from ella_cli.report.results import RunResults
from ella_cli.run_paths import RunPaths

# Pairs of tasks times modules: about 3 ms each for 1024 × 1024 at rank 8 on one core.
_MOST_PAIRS = 5000
# The same, of curvature: about 1 ms each for SmolLM2's modules, so that fifteen tasks take seconds.
_MOST_RISES = 10_000


@dataclass(frozen=True)
class PastPicture:
    sections: tuple[Section, ...]
    json: Mapping[str, Any]


def picture_past(run: RunResults) -> PastPicture | None:
    """None where the run kept no W_past.

    Raises:
        PastError: the file is damaged.
    """
    path = RunPaths(run.path).past
    if not path.is_file():
        return None
    from ella_cli.inspect.collisions import collisions_of
    from ella_cli.inspect.curvature import rises_of_sequence
    from ella_cli.inspect.energy import energy_of
    from ella_cli.inspect.run_stages import past_of_run, summed_adapters
    from ella_cli.inspect.spectrum import spectrum_of
    from ella_cli.past import read_past

    past = past_of_run(run.path, path)
    energy, spectrum = energy_of(past), spectrum_of(past)
    sections = [energy_section(energy), spectrum_section(spectrum)]
    collisions = None
    pairs = len(past.tasks) * (len(past.tasks) + 1) // 2 * len(past.names)
    if pairs <= _MOST_PAIRS:
        collisions = collisions_of(past)
        if len(collisions.tasks) > 1:
            sections.append(collision_section(collisions))
    else:
        words = (
            f"The overlaps of {pairs:,} pairs of tasks and modules are left out here; "
            "`ella inspect overlap` looks at one adapter's, `ella inspect forgetting` at a run's."
        )
        sections.append(Section("Overlap between tasks", (Words(words),)))
    rises = None
    if pairs <= _MOST_RISES:
        rises = rises_of_sequence(summed_adapters(run.path, past))
    if rises is not None:
        sections.append(sequence_rise_section(rises))
    return PastPicture(
        tuple(sections),
        {
            "digest": read_past(path).digest,
            "energy": asdict(energy),
            "spectrum": asdict(spectrum),
            "collisions": None if collisions is None else asdict(collisions),
            "predicted_rises": None if rises is None else asdict(rises),
        },
    )
