"""`ella` as a process, forked from one that has loaded torch and its like already.

Loading them takes ten times as long as most commands. The process is as real as any other, with
arguments, a folder, an environment, output and an exit code of its own; `ella_cli` itself it loads
anew. What others have loaded before shows in what those read when they are loaded, such as
HF_HUB_CACHE, and in one hash seed for all: the fixture `fresh_ella` starts Python anew.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
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


def start_server() -> None:
    """Starts what is forked from, with the environment as it is now."""
    multiprocessing.forkserver.ensure_running()


def ella_forked(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    largest_file: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """`ella ARGUMENTS` in `folder`, with no room for more than `largest_file` bytes in a file."""
    readers, writers = zip(*(_FORKS.Pipe(duplex=False) for _ in range(2)), strict=True)
    given = (arguments, folder, environment, largest_file, writers)
    process = _FORKS.Process(target=_become_ella, args=given)
    process.start()
    for writer in writers:
        writer.close()
    try:
        with ThreadPoolExecutor(len(readers)) as threads:
            words = list(threads.map(_all_of, readers))
        process.join()
    finally:
        process.kill()
    code = process.exitcode
    assert code is not None
    return subprocess.CompletedProcess(["ella", *arguments], code, *words)


def _all_of(reader: Connection) -> str:
    with reader, open(reader.fileno(), "rb", closefd=False) as stream:
        return stream.read().decode()


def _become_ella(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    largest_file: int | None,
    writers: Sequence[Connection],
) -> None:
    for number, writer in enumerate(writers, 1):
        os.dup2(writer.fileno(), number)
        writer.close()
    # As Python opens them: those of the server know what it was given.
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = ["ella", *arguments]
    runpy.run_module("ella_cli", run_name="__main__", alter_sys=True)
