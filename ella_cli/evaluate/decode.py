"""What a model answers to prompts: greedily generated, or the likeliest of a set of labels.

Ranking reads each prompt once. For a decoder all labels stand side by side behind the prompt in
one sequence, and a mask lets each label see the prompt and itself only; their positions all start
where the prompt ends. Where a decoder attends otherwise than that mask says, by windows, by
distance or through a state, each label gets a pass of its own. For an encoder-decoder the encoder
runs once and its output serves all labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from ella_cli.errors import NonFiniteError
from ella_cli.model.base import Base
from ella_cli.tasks.batches import IGNORED, Encoder, pad_left, pad_right

Answered = Callable[[int], None]  # told how many rows were just answered

# Their attention falls off with distance, which a mask given as a whole leaves out.
_BY_DISTANCE = {"bloom", "mpt"}
# Windows by the place in the sequence, whatever positions are given.
_BY_PLACE = {"gpt_neo"}

# Tokens beyond the longest label: room for punctuation that exact match forgives.
_SPARE_TOKENS = 4


def generate_answers(
    base: Base,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    batch_size: int,
    answered: Answered,
) -> list[str]:
    """Greedy answers, stripped. With labels, an answer longer than any label is cut short.

    Args:
        prompts: token ids from `Encoder.prompt`.
        labels: the label set, empty for free text.
        answered: called after each batch with its number of rows.
    """
    length = encoder.max_target
    if labels:
        length = min(length, max(len(encoder.answer(label)) for label in labels) + _SPARE_TOKENS)
    tokenizer, answers = base.tokenizer, [""] * len(prompts)
    for indices in _by_length(prompts, batch_size):
        batch = _padded(base, [prompts[i] for i in indices])
        # generate() counts positions itself.
        batch.pop("position_ids", None)
        with torch.inference_mode():
            out = base.model.generate(  # type: ignore[operator]
                **batch,
                max_new_tokens=length,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :] if base.kind == "decoder" else out
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for i, text in zip(indices, texts, strict=True):
            answers[i] = text.strip()
        answered(len(indices))
    return answers


def rank_labels(
    base: Base,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[str],
    *,
    batch_size: int,
    answered: Answered,
) -> list[str]:
    """The label with the highest log-likelihood, its end token included; first of equals.

    Args:
        prompts: token ids from `Encoder.prompt`.
        labels: the label set, at least one.
        answered: called after each batch with its number of rows.

    Raises:
        NonFiniteError: the model gives no numbers.
    """
    targets = [encoder.answer(label) for label in labels]
    longest = max(map(len, targets))
    answers = [""] * len(prompts)
    for indices in _by_length(prompts, batch_size):
        likelihoods = _encdec_likelihoods
        if base.kind == "decoder":
            # The first of a batch is its longest.
            whole = sees_all(base, len(prompts[indices[0]]) + longest)
            likelihoods = _side_by_side if whole else _one_by_one
        with torch.inference_mode():
            scores = likelihoods(base, [prompts[i] for i in indices], targets)  # (S, labels)
        if scores.isnan().any():
            raise NonFiniteError(
                "the model's likelihoods are no numbers",
                hint="check the adapter with `ella inspect adapter`, or score in --dtype float32",
            )
        for i, best in zip(indices, scores.argmax(dim=1).tolist(), strict=True):
            answers[i] = labels[best]
        answered(len(indices))
    return answers


def _by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of like length, longest first: what runs out of memory does so at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _padded(base: Base, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    pad = base.tokenizer.pad_token_id
    assert isinstance(pad, int)
    batch = pad_left(prompts, pad) if base.kind == "decoder" else pad_right(prompts, pad)
    return {name: tensor.to(base.device) for name, tensor in batch.items()}


def sees_all(base: Base, length: int) -> bool:
    """Whether every layer of a decoder attends to all of `length` tokens, by their positions only.

    A mask given as a whole takes the place of a layer's own: of its window, of its distances.
    """
    config = base.model.config.get_text_config()
    if config.model_type in _BY_DISTANCE | _BY_PLACE or getattr(config, "alibi", False):
        return False
    if getattr(base.model, "_is_stateful", False):
        return False
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return False
    windowed = kinds - {"full_attention"} if kinds else getattr(config, "use_sliding_window", True)
    spans = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return not windowed or all(span is None or length <= span for span in spans)


def _one_by_one(
    base: Base, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Tensor:
    """Log-likelihoods of targets, nats, (S, labels) f32, in one forward pass a target."""
    collate, scores = base.collator(), []
    for target in targets:
        rows = [{"input_ids": [*prompt, *target], "labels": list(target)} for prompt in prompts]
        logits, labels = base.answer_logits(collate(rows))  # (S · L_target, V), (S · L_target,)
        chosen = logits.log_softmax(dim=-1).gather(1, labels[:, None])
        scores.append(chosen.view(len(prompts), len(target)).sum(dim=1))
    return torch.stack(scores, dim=1)


def _side_by_side(
    base: Base, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Tensor:
    """Log-likelihoods of targets, nats, (S, labels) f32, in one forward pass."""
    batch = _padded(base, prompts)
    mask = batch["attention_mask"]  # (S, L)
    device = mask.device
    # The last token of a target is predicted, never read.
    owner = [i for i, target in enumerate(targets) for _ in target[:-1]]
    depth = [d for target in targets for d in range(len(target) - 1)]
    read = torch.tensor([t for target in targets for t in target[:-1]], device=device)  # (T,)
    own = torch.tensor(owner, device=device)  # (T,)
    place = torch.tensor(depth, device=device)  # (T,)
    size, length, block = mask.shape[0], mask.shape[1], len(owner)

    seen = torch.zeros(size, length + block, length + block, dtype=torch.bool, device=device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    seen[:, :length, :length] = causal & mask[:, None, :].bool()
    seen[:, length:, :length] = mask[:, None, :].bool()
    seen[:, length:, length:] = (own[:, None] == own) & (place[:, None] >= place)
    lowest = torch.finfo(base.model.dtype).min
    bias = torch.zeros(seen.shape, dtype=base.model.dtype, device=device)  # (S, L+T, L+T)
    bias.masked_fill_(~seen, lowest)

    ends = batch["position_ids"][:, -1:] + 1  # (S, 1)
    logits = base.model(
        input_ids=torch.cat([batch["input_ids"], read.expand(size, -1)], dim=1),
        position_ids=torch.cat([batch["position_ids"], ends + place], dim=1),
        attention_mask=bias[:, None],
        # Indices, not a count: a slice would leave rows apart in memory, and the product with the
        # head would first copy the head once a row.
        logits_to_keep=torch.arange(length - 1, length + block, device=device),
        use_cache=False,
    ).logits.float()  # (S, 1 + T, V)
    scores, start = [], 1
    for target in targets:
        # The prompt's last position predicts the first token, each token read the next.
        where = [0, *range(start, start + len(target) - 1)]
        start += len(target) - 1
        chosen = logits[:, where].log_softmax(dim=-1)  # (S, L_target, V)
        wanted = torch.tensor(target, device=device).expand(size, -1)[..., None]
        scores.append(chosen.gather(2, wanted).sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def _encdec_likelihoods(
    base: Base, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
) -> Tensor:
    """Log-likelihoods of targets, nats, (S, labels) f32; the encoder runs once."""
    batch = _padded(base, prompts)
    size, count = len(prompts), len(targets)
    states = base.model.get_encoder()(**batch).last_hidden_state  # (S, L, hidden)
    pad = base.tokenizer.pad_token_id
    assert isinstance(pad, int)
    rows = [{"input_ids": [pad], "labels": list(target)} for target in targets]
    block = base.collator()(rows)
    labels = block["labels"].to(base.device).repeat(size, 1)  # (S · labels, L)
    logits = base.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat_interleave(count, dim=0)),
        attention_mask=batch["attention_mask"].repeat_interleave(count, dim=0),
        decoder_input_ids=block["decoder_input_ids"].to(base.device).repeat(size, 1),
    ).logits.float()  # (S · labels, L, V)
    losses = torch.nn.functional.cross_entropy(
        logits.mT, labels, ignore_index=IGNORED, reduction="none"
    )  # (S · labels, L)
    return -losses.sum(dim=1).view(size, count)
