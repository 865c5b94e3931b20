"""The processes of one command: usually one; several under torchrun or `accelerate launch`.

All of them run the same command. The main one writes what is for all of them, and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ella_cli.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

# One may evaluate longer than the others; one that dies takes the others with it all the same.
_PATIENCE = timedelta(days=1)


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """0 in the main process."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def local_rank() -> int:
    """The place on this machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def join(*, cpu: bool) -> None:
    """Meets the other processes, if there are any; before that `wait` does nothing.

    Args:
        cpu: they compute on the CPU.

    Raises:
        SettingsError: others were asked for, but never started.
    """
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_USE_CPU"} <= set(os.environ):
        # accelerate 1.15 takes --num_processes 2 --cpu and starts one all the same.
        raise SettingsError(
            "accelerate launch was asked for several processes and has started one",
            hint="on the CPU start them with `torchrun --nproc-per-node 2 -m ella_cli ...`",
        )
    if count() > 1:
        from accelerate import PartialState  # type: ignore[import-untyped]

        PartialState(cpu=cpu, timeout=_PATIENCE)


def wait() -> None:
    """Returns when all processes have come here."""
    if count() == 1:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def summed(tensor: Tensor) -> Tensor:
    """The sum of what every process gives, in each of them."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block, then the others do."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()
