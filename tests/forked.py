"""`ella` as a process, forked from one that has loaded torch and its like already.

Loading them takes ten times as long as most commands. The process is as real as any other, with
arguments, a folder, an environment, output files and an exit code of its own; `ella_cli` itself it
loads anew. What others have loaded before shows only in what those read when they are loaded, such
as HF_HUB_CACHE: the fixture `fresh_ella` starts Python anew.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "pytest",
        "torch",
        "torch.utils.tensorboard",
        "transformers",
        "transformers.trainer",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "transformers.models.t5.modeling_t5",
        "peft",
        "accelerate",
        "datasets",
        "matplotlib.backends.backend_agg",
        "tests.forked",
    ]
)


def ella_forked(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    largest_file: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """`ella ARGUMENTS` in `folder`, with no room for more than `largest_file` bytes in a file."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        files = [f"/proc/{os.getpid()}/fd/{one.fileno()}" for one in (out, errors)]
        given = (arguments, folder, environment, largest_file, files)
        process = _FORKS.Process(target=_become_ella, args=given)
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        words = []
        for one in (out, errors):
            one.seek(0)
            words.append(one.read().decode())
        code = process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(["ella", *arguments], code, *words)


def _become_ella(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    largest_file: int | None,
    files: Sequence[str],
) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["ella", *arguments]
    runpy.run_module("ella_cli", run_name="__main__", alter_sys=True)
