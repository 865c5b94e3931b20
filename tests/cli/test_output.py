"""What a command lets through of the libraries' own voices."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("quiet", [True, False])
def test_the_libraries_bars_are_silent_where_no_one_watches(quiet: bool) -> None:
    """As transformers' bar while a GGUF file is unpacked; stderr is a pipe here."""
    code = (
        f"from ella_cli.cli.output import Output; Output(quiet={quiet}); "
        "from tqdm.auto import tqdm; print(*tqdm(range(3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 1 2\n"
    assert done.stderr == ""
