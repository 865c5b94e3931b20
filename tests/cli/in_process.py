"""`ella` in the test's own process, where its exit code and its words are all that is asked."""

from __future__ import annotations

import pytest

from ella_cli.cli.main import main


def ella(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Runs `ella WORDS`; its exit code."""
    monkeypatch.setattr("sys.argv", ["ella", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)
