"""Token batches from prompts: the text is cut to fit, never its frame, and only answers count.

Decoders get their sequences padded on the left, and a mask of the positions that predict an answer
token: the head of the model, the widest of its matrices, runs on those positions alone.
Encoder-decoders get the usual pair of right-padded sequences.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ella_cli.errors import TaskError
from ella_cli.tasks.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What cross-entropy passes over, in torch and transformers alike.
IGNORED = -100

Kind = Literal["decoder", "encoder-decoder"]


@dataclass(frozen=True)
class Encoder:
    """Turns prompts and answers into token ids, as one kind of model reads them.

    Attributes:
        max_source: tokens a prompt may have, special ones included.
        max_target: tokens an answer may have, the end token included.
    """

    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    max_source: int = 512
    max_target: int = 50

    def prompt(self, prompt: Prompt) -> list[int]:
        """Ids of head + text + tail; tokens of the text alone are dropped until all fit.

        Raises:
            TaskError: head and tail alone are longer than `max_source`.
        """
        encoded = self.tokenizer(str(prompt), add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        before, after = self._frame
        excess = len(before) + len(ids) + len(after) - self.max_source
        if excess > 0:
            offsets = encoded.get("offset_mapping")
            if offsets is None:
                # A tokenizer written in Python, as ByT5's, does not say where its tokens lie.
                ids, offsets = self._apart(prompt)
                excess = max(0, len(before) + len(ids) + len(after) - self.max_source)
            ids = _shorten_text(ids, offsets, prompt, excess) if excess else ids
        return before + ids + after

    def _apart(self, prompt: Prompt) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of head, text and tail one by one, each token placed where its part is."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        start = 0
        for part in (prompt.head, prompt.text, prompt.tail):
            own = self.tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            ids += own
            places += [(start, start + len(part))] * len(own)
            start += len(part)
        return ids, places

    def answer(self, answer: str) -> list[int]:
        """Ids of the answer, closed by the end token; a long answer is cut before it."""
        # A decoder reads on from "Answer:", so its first word needs the space in front.
        text = answer if self.kind == "encoder-decoder" else f" {answer}"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int)
        return [*ids[: self.max_target - 1], end]

    def check_labels(self, task: str, labels: Sequence[str], *, generated: bool) -> None:
        """
        Args:
            generated: whether answers will be, or labels be ranked.

        Raises:
            TaskError: a label has more tokens than an answer may have, so that it is never
                generated, or is the same as another one that is cut.
        """
        whole = replace(self, max_target=sys.maxsize)
        lengths = {label: len(whole.answer(label)) for label in labels}
        cut = [label for label in labels if lengths[label] > self.max_target]
        if not cut:
            return
        kept = {tuple(self.answer(label)) for label in labels}
        if generated or len(kept) < len(labels):
            longest = max(cut, key=lengths.__getitem__)
            raise TaskError(
                f"{task}: the label {longest[:40]!r} has {lengths[longest]} tokens, an answer may "
                f"have {self.max_target}",
                hint=f"give --max-target-length {lengths[longest]}, or shorten the label",
            )

    def example(self, prompt: Prompt, answer: str) -> dict[str, list[int]]:
        """One training row. `input_ids` is what length grouping measures.

        Decoder: prompt and answer in `input_ids`, the answer again in `labels`.
        Encoder-decoder: the prompt in `input_ids`, the answer in `labels`.
        """
        source, target = self.prompt(prompt), self.answer(answer)
        joined = source + target if self.kind == "decoder" else source
        return {"input_ids": joined, "labels": target}

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens this tokenizer puts before and after a text."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = self.tokenizer("a")["input_ids"]
        start = framed.index(plain[0])
        before, after = framed[:start], framed[start + len(plain) :]
        # A decoder's prompt goes on with the answer, so nothing may close it.
        return before, ([] if self.kind == "decoder" else after)


@dataclass(frozen=True)
class Collator:
    """Rows of `Encoder.example` -> one batch for the model; ready for a `Trainer`."""

    pad: int
    kind: Kind
    decoder_start: int = 0

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        sources = [row["input_ids"] for row in rows]
        targets = [row["labels"] for row in rows]
        if self.kind == "decoder":
            return self._decoder_batch(sources, targets)
        length = max(map(len, sources))
        labels = _padded(targets, IGNORED, max(map(len, targets)), left=False)  # (S, L)
        shifted = labels.roll(1, dims=1)  # (S, L)
        shifted[:, 0] = self.decoder_start
        shifted[shifted == IGNORED] = self.pad
        ids = _padded(sources, self.pad, length, left=False)  # (S, L_source)
        mask = _padded([[1] * len(source) for source in sources], 0, length, left=False)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "decoder_input_ids": shifted,
            "labels": labels,
        }

    def _decoder_batch(
        self, sources: Sequence[list[int]], targets: Sequence[list[int]]
    ) -> dict[str, Any]:
        batch: dict[str, Any] = dict(pad_left(sources, self.pad))
        predicts = torch.zeros_like(batch["input_ids"], dtype=torch.bool)  # (S, L)
        for row, target in zip(predicts, targets, strict=True):
            # The answer ends at the last position; each token is predicted one before it.
            row[-len(target) - 1 : -1] = True
        answers = torch.tensor(
            [token for target in targets for token in target]
        )  # (answer tokens,)
        # `shift_labels` tells Trainer that these are aligned with the logits as they are.
        return batch | {"logits_to_keep": predicts, "labels": answers, "shift_labels": answers}


def pad_left(sequences: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids, mask and positions of a decoder batch, (S, L) each; positions start at 0 in each row."""
    length = max(map(len, sequences))
    ids = _padded(sequences, pad, length, left=True)  # (S, L)
    mask = _padded([[1] * len(s) for s in sequences], 0, length, left=True)  # (S, L)
    positions = (mask.cumsum(dim=1) - 1).clamp_min_(0)  # (S, L)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def pad_right(sequences: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids and mask of an encoder batch, (S, L) each."""
    length = max(map(len, sequences))
    mask = _padded([[1] * len(s) for s in sequences], 0, length, left=False)  # (S, L)
    return {"input_ids": _padded(sequences, pad, length, left=False), "attention_mask": mask}


def _padded(sequences: Sequence[Sequence[int]], value: int, length: int, *, left: bool) -> Tensor:
    out = torch.full((len(sequences), length), value)  # (S, L) int64
    for row, sequence in zip(out, sequences, strict=True):
        where = slice(length - len(sequence), None) if left else slice(None, len(sequence))
        row[where] = torch.tensor(sequence)
    return out


def _shorten_text(
    ids: list[int], offsets: Sequence[tuple[int, int]], prompt: Prompt, excess: int
) -> list[int]:
    text_start = len(prompt.head)
    text_end = text_start + len(prompt.text)
    # Tokens that reach over an edge of the text belong to the frame.
    inside = [
        i for i, (start, end) in enumerate(offsets) if text_start <= start and end <= text_end
    ]
    if len(inside) < excess:
        raise TaskError(
            f"instruction and options alone are {len(ids) - len(inside)} tokens, "
            f"{excess - len(inside)} more than fit",
            hint="raise --max-source-length where the model has the positions, or shorten the "
            "instruction or the label names",
        )
    first_cut = inside[0] if prompt.cut == "start" else inside[len(inside) - excess]
    return ids[:first_cut] + ids[first_cut + excess :]
