"""Settings that were given and change nothing beside the others: said, not refused.

One run.yaml serves several methods, so what one of them makes nothing of is no mistake by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from ella_cli.config import SUMMED_METHODS, RunSettings, TrainSettings

_WEIGHED = {"ella", "olora"}


def unused_settings(settings: TrainSettings) -> list[str]:
    """One sentence for each setting that was given and has no effect."""
    known = type(settings).model_fields
    said = [(name, f"changes nothing here: {reason}") for name, reason in _reasons(settings)]
    return [
        f"--{(known[name].alias or name).replace('_', '-')} {words}"
        for name, words in (*said, *_not_trained_by(settings))
        if name in settings.model_fields_set and getattr(settings, name) != known[name].default
    ]


def _not_trained_by(settings: TrainSettings) -> Iterator[tuple[str, str]]:
    """What is only made for others: a past's energy and curvature, by who does not train by it."""
    if settings.method in SUMMED_METHODS - {"ella"}:
        # `ella run` writes a past file; `ella train` writes none.
        what = "the run's past file alone" if isinstance(settings, RunSettings) else "nothing here"
        for name in ("energy", "last", "decay"):
            yield name, f"changes {what}: {settings.method} does not train by it"
    by_coordinates = settings.method == "ella" and settings.energy not in (None, "curvature")
    others = settings.method in SUMMED_METHODS - {"ella"}
    if settings.curvature_rows and (by_coordinates or others):
        by = f"--energy {settings.energy}" if by_coordinates else settings.method
        for name in ("energy_rank", "importance"):
            yield name, f"changes what is measured alone: {by} does not train by it"


def _reasons(settings: TrainSettings) -> Iterator[tuple[str, str]]:
    """Names of settings that have no effect beside the others, each with why."""
    method = settings.method
    if method not in _WEIGHED:
        if settings.lam != 0:
            yield "lam", f"{method} has no penalty"
        yield "rho", f"{method} has no penalty"
    elif method == "olora":
        yield "rho", "it is a rule for method ella"
    elif not _finds_lambda(settings):
        yield "rho", "--lambda is given as a number"
    if method != "olora":
        yield "olora_l2", f"it is a weight of olora, and the method is {method}"
    if method != "replay":
        yield "replay_share", f"{method} learns no old rows again"
    if method not in SUMMED_METHODS:
        for name in ("energy", "last", "decay"):
            yield name, f"{method} adds no updates up, so nothing is protected"
        for name in ("curvature_rows", "energy_rank", "importance"):
            yield name, f"{method} measures no curvature"
    elif not settings.curvature_rows:
        for name in ("energy_rank", "importance"):
            yield name, "with --curvature-rows 0 no curvature is measured"
    if settings.max_steps is not None:
        yield "num_train_epochs", "--max-steps says how long a task is trained"


def _finds_lambda(settings: TrainSettings) -> bool:
    lam = settings.lam
    return lam in (None, "auto") or (isinstance(lam, tuple) and "auto" in lam)
