"""Many modules' penalties in two launches: `penalty_kernel`, then the reduction.

Triton is imported when the first kernel is launched, not before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ella_cli.errors import SettingsError
from ella_cli.kernels.operands import Factors, Past
from ella_cli.kernels.schedule import (
    SUM_COLUMNS,
    SUM_SLOTS,
    Blocks,
    Schedule,
    blocks_for,
    make_schedule,
    padded_rank,
)

PRECISIONS = ("ieee", "tf32")

# Elements: what the widest load of a half-precision W_past wants its rows aligned to.
_ALIGNMENT = 16

# Where there is no device to count them: the interpreter, in tests.
_INTERPRETED_PROCESSORS = 2

Group = tuple[torch.dtype, torch.dtype, torch.dtype, bool, bool, str, int]


def check_precision(precision: str | None) -> None:
    if precision is not None and precision not in PRECISIONS:
        raise SettingsError(
            f"no precision {precision!r}", hint=f"one of {', '.join(PRECISIONS)}, or None"
        )


def precision_for(past: Past, precision: str | None) -> str:
    """`ieee` for an f32 past; tf32 for a half one, which alone outruns the f32 units."""
    if precision is not None:
        return precision
    return "tf32" if _stored_dtype(past) in (torch.bfloat16, torch.float16) else "ieee"


def group_of(b: Tensor, a: Tensor, past: Past, precision: str | None) -> Group:
    """What modules of one launch have in common: it is compiled in."""
    return (
        b.dtype,
        a.dtype,
        _stored_dtype(past),
        isinstance(past, Factors),
        not isinstance(past, Factors) and _aligned(past),
        precision_for(past, precision),
        padded_rank(b.shape[1]),
    )


def _aligned(past: Tensor) -> bool:
    return (
        past.stride(1) == 1
        and past.stride(0) % _ALIGNMENT == 0
        and past.shape[1] % _ALIGNMENT == 0
        and past.data_ptr() % 16 == 0
    )


class Launch:
    """One group of modules: its schedule, and the address table it was last called with.

    Args:
        group: of `group_of`, the same for all modules.
        pasts: of each module.
        ranks: of each module's update.
        scales: alpha / R of each module.
        blocks: other tiles than the usual ones of `blocks_for`.
    """

    def __init__(
        self,
        group: Group,
        pasts: Sequence[Past],
        ranks: Sequence[int],
        scales: Sequence[float],
        *,
        blocks: Blocks | None = None,
    ) -> None:
        *_, self._past_dtype, self._factored, self._aligned, self._precision, padded = group
        self._pasts = [_one_dtype(past) for past in pasts]
        self._shapes = [(*past.shape, rank) for past, rank in zip(pasts, ranks, strict=True)]
        self._device = pasts[0].device
        usual = blocks_for(padded, self._precision, factored=self._factored)
        self._blocks = usual if blocks is None else blocks
        assert self._blocks.rank >= padded, (self._blocks, padded)
        self._schedule: Schedule = make_schedule(
            self._shapes, scales, self._blocks, _processors(self._device), self._device
        )
        self._addresses: tuple[int, ...] = ()
        self._modules = torch.zeros(0)

    def __call__(
        self, bs: Sequence[Tensor], as_: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Values (modules,), ∂/∂B (M, R) and ∂/∂A (R, N) of each module, all f32."""
        from ella_cli.kernels.reduce_kernel import reduce_kernel

        schedule = self._schedule
        self._refresh_modules(bs, as_)
        workspace, out = (
            torch.empty(size, dtype=torch.float32, device=self._device)
            for size in (schedule.workspace_size, schedule.out_size)
        )
        self._launch(bs[0].dtype, as_[0].dtype, workspace)
        reduce_kernel[(schedule.sums.shape[0],)](
            schedule.sums,
            schedule.factors,
            workspace,
            out,
            BLOCK_S=SUM_SLOTS,
            BLOCK_E=SUM_COLUMNS,
        )
        dbs, das = [], []
        for (rows, columns, rank), db, da in zip(
            self._shapes, schedule.db_offsets, schedule.da_offsets, strict=True
        ):
            dbs.append(out[db : db + rows * rank].view(rows, rank))
            das.append(out[da : da + rank * columns].view(rank, columns))
        return out[: len(bs)], dbs, das

    def _launch(self, b_dtype: torch.dtype, a_dtype: torch.dtype, workspace: Tensor) -> None:
        from ella_cli.kernels.penalty_kernel import penalty_kernel
        from ella_cli.kernels.triton_types import triton_dtype

        blocks = self._blocks
        penalty_kernel[(self._schedule.items.shape[0],)](
            self._modules,
            self._schedule.items,
            workspace,
            FACTORED=self._factored,
            ALIGNED=self._aligned,
            B_DTYPE=triton_dtype(b_dtype),
            A_DTYPE=triton_dtype(a_dtype),
            PAST_DTYPE=triton_dtype(self._past_dtype),
            BLOCK_M=blocks.rows,
            BLOCK_N=blocks.columns,
            BLOCK_R=blocks.rank,
            BLOCK_K=blocks.past_rank,
            SPLIT=blocks.split,
            PRECISION=self._precision,
            STAGES=blocks.stages,
            num_warps=blocks.warps,
        )

    def _refresh_modules(self, bs: Sequence[Tensor], as_: Sequence[Tensor]) -> None:
        """Writes the table of addresses anew if a B or an A has moved since the last call."""
        addresses = tuple(
            word
            for b, a in zip(bs, as_, strict=True)
            for word in (b.data_ptr(), *b.stride(), a.data_ptr(), *a.stride())
        )
        if addresses == self._addresses:
            return
        rows = [
            [*addresses[6 * i : 6 * i + 6], *shape, *_past_words(past)]
            for i, (shape, past) in enumerate(zip(self._shapes, self._pasts, strict=True))
        ]
        self._modules = torch.tensor(rows, dtype=torch.int64).to(self._device)
        self._addresses = addresses


def _past_words(past: Past) -> list[int]:
    if isinstance(past, Factors):
        p, q = past.p, past.q
        return [p.data_ptr(), *p.stride(), q.data_ptr(), *q.stride(), past.rank]
    return [past.data_ptr(), *past.stride(), 0, 0, 0, 0]


def _stored_dtype(past: Past) -> torch.dtype:
    """What a kernel reads it in: factors of two dtypes are made f32."""
    if not isinstance(past, Factors):
        return past.dtype
    return past.p.dtype if past.p.dtype == past.q.dtype else torch.float32


def _one_dtype(past: Past) -> Past:
    if isinstance(past, Factors) and past.p.dtype != past.q.dtype:
        return Factors(past.p.float(), past.q.float())
    return past


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
