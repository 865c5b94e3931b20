"""What `ella.json` says of the versions."""

from __future__ import annotations

import pytest
import torch

from ella_cli.training import manifest


def test_what_runs_without_being_installed_has_no_known_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from a source tree on PYTHONPATH."""
    monkeypatch.setattr(manifest, "_PACKAGES", ("torch", "no-such-package"))
    found = manifest.versions()
    assert found["no-such-package"] == "unknown"
    assert torch.__version__.startswith(found["torch"].split("+")[0])
