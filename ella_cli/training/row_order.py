"""The order in which a task's rows are learned: by seed and epoch alone.

Trainer's own sampler by length draws from the global generator, which dropout has moved on by
then: a training that goes on from a checkpoint would get other rows, and each of several
processes an order of its own (transformers 5.24, `LengthGroupedSampler`).

Several processes take equally many rows at each step. Where an epoch's last step has too few for
that, accelerate would take rows from the epoch's start again; here it gets rows of no answer, which
teach nothing, so that several processes learn what one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

# Apart from the next seed's epochs, which are those of the next stage.
_EPOCHS_A_SEED = 100_003


class RowOrder(Sampler[int]):
    """Shuffled rows, the same whenever and wherever an epoch is begun.

    Args:
        lengths: tokens of each row.
        seed: of the whole task.
        epoch: tells which epoch begins.
        group: rows of one step, to be of like length; None for a plain shuffle.
        at_once: rows that processes take together; what an epoch lacks of a multiple of it are
            rows of no answer, each of the index after the last row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seed: int,
        epoch: Callable[[], int],
        group: int | None,
        at_once: int = 1,
    ) -> None:
        self._lengths = list(lengths)
        self._seed = seed
        self._epoch = epoch
        self._group = group
        self._missing = -len(lengths) % at_once

    def __len__(self) -> int:
        return len(self._lengths) + self._missing

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * _EPOCHS_A_SEED + self._epoch())
        count = len(self._lengths)
        if self._group is None:
            order: list[int] = torch.randperm(count, generator=generator).tolist()
        else:
            order = get_length_grouped_indices(self._lengths, self._group, generator=generator)  # type: ignore[no-untyped-call]
        return iter([*order, *[count] * self._missing])
