"""Which of the four exact ways computes a module's penalty."""

from __future__ import annotations

from ella_cli.errors import SettingsError

EAGER, FUSED, TILED, GRAM, AUTO = "eager", "fused", "tiled", "gram", "auto"
FORMS = (EAGER, FUSED, TILED, GRAM)


def check_form(form: str) -> None:
    if form not in (AUTO, *FORMS):
        raise SettingsError(
            f"no form {form!r} of the penalty", hint=f"one of {', '.join((AUTO, *FORMS))}"
        )
