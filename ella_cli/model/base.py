"""A loaded base model with its tokenizer and the fingerprint by which adapters know it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ella_cli import processes
from ella_cli.errors import ModelError, SettingsError
from ella_cli.model.attention import leave_cudnn_attention, short_attention
from ella_cli.model.source import model_errors, resolve_source
from ella_cli.names import is_nameable
from ella_cli.tasks.batches import IGNORED, Collator, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["decoder", "encoder-decoder"]

# Entries hashed per tensor: enough to tell any two trainings apart, little enough that a 70B
# model is fingerprinted by reading a few megabytes.
_SAMPLED_ENTRIES = 1024


@dataclass(frozen=True)
class Base:
    """The frozen model W0.

    Attributes:
        source: what the user wrote after --model.
        kind: a decoder reads prompt and answer in one sequence; an encoder-decoder apart.
        fingerprint: SHA-256 over names, shapes and sampled bf16 values of all weights; equal for
            the same weights whatever file, shard or dtype they were loaded from; but for float16,
            in which small weights lose bits.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    fingerprint: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def precision(self) -> str:
        """Of the weights: what `--dtype` takes, and `auto` has become."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256, hex, over all that makes tokens of text; the weights' fingerprint lacks it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend else self.tokenizer.get_vocab()
        # What the last call asked for.
        kept = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
        facts = [kept, self.tokenizer.special_tokens_map]
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def encoder(self, max_source: int, max_target: int) -> Encoder:
        """Prompts and answers -> rows for `collator`; as long as asked and as the model can read.

        Args:
            max_source, max_target: as `Encoder` takes them.

        Raises:
            SettingsError: answers as long as asked leave a prompt no room.
        """
        room = prompt_room(self.model.config, self.kind, max_source, max_target)
        return Encoder(self.tokenizer, self.kind, room, max_target)

    def collator(self) -> Collator:
        """Rows of `Encoder.example` -> batches as this model reads them."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        start = getattr(self.model.config, "decoder_start_token_id", None)
        return Collator(pad, self.kind, pad if start is None else start)

    def answer_logits(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits that predict a batch's answer tokens, and those tokens.

        Args:
            batch: of `collator`, on any device.

        Returns:
            (tokens, V) f32 and (tokens,) int64, in the batch's order, without padding.
        """
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        labels = inputs.pop("labels").flatten()
        inputs.pop("shift_labels", None)
        with short_attention(inputs["input_ids"]):
            logits = self.model(**inputs).logits.float().flatten(0, -2)
        answers = labels != IGNORED
        return logits[answers], labels[answers]

    def check_ground(self, what: str, fingerprint: str | None) -> None:
        """Makes sure that `what` was made on this base; an unknown fingerprint passes.

        Raises:
            ModelError: it was made on another base.
        """
        if fingerprint and fingerprint != self.fingerprint:
            raise ModelError(
                f"{what} was made on a base with fingerprint {fingerprint[:12]}, "
                f"{self.source} has {self.fingerprint[:12]}",
                hint="give the --model it was made on, and --dtype float16 if that was asked for; "
                "`ella inspect` names it",
            )


def load_base(source: str, *, dtype: str = "auto", device: str = "auto") -> Base:
    """Loads model and tokenizer, frozen and in eval mode; on CUDA, `leave_cudnn_attention` too.

    Args:
        source: hub id, folder, `.gguf` file or `smollm2`.
        dtype: a torch dtype's name, or auto: bfloat16 where the hardware computes in it.
        device: a torch device, or auto: cuda if there is one, else cpu.

    Raises:
        ModelError: nothing loadable there, T5 asked for in float16, or no pad or end token.
        SettingsError: torch knows no such device, or it is not here.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    if not is_nameable(source):
        # Adapters and pasts that name it could not be read again.
        raise ModelError(f"{source!r} cannot be a model's name", hint="rename its folder")
    # Progress is for the caller to show; the library's bars would be drawn into it.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    target = device_of(device, here=True)
    if target.type == "cuda":
        leave_cudnn_attention()
    processes.join(cpu=target.type == "cpu")
    # What has to be unpacked is unpacked once.
    with processes.main_first():
        where = resolve_source(source)
    chosen = default_dtype(target) if dtype == "auto" else getattr(torch, dtype)
    with model_errors(
        f"cannot load the model {source}",
        hint="give a hub id (needs the network), a local folder, a .gguf file, or smollm2",
    ):
        # Nobody is asked whether a folder's own Python may run: it may not.
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        if config.model_type in {"t5", "mt5", "umt5"} and chosen == torch.float16:
            raise ModelError(
                f"{source} is a T5, whose activations overflow in float16",
                hint="use --dtype bfloat16 or --dtype float32",
            )
        kind: Kind = "encoder-decoder" if config.is_encoder_decoder else "decoder"
        loader = AutoModelForSeq2SeqLM if kind == "encoder-decoder" else AutoModelForCausalLM
        model = loader.from_pretrained(where, dtype=chosen, trust_remote_code=False)
        model.to(target)  # type: ignore[arg-type]
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source} has no end token", hint="set eos_token in it")
    known = config.get_text_config().vocab_size
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        # Any token will do under the mask, if the model has it.
        tokenizer.pad_token = tokenizer.eos_token
    model.requires_grad_(False).eval()
    _answer_plainly(model)
    return Base(source, model, tokenizer, kind, fingerprint(model))


def _answer_plainly(model: PreTrainedModel) -> None:
    """Leaves of a checkpoint's own way to generate only which tokens begin and end a text.

    A repetition penalty would count against the very labels that a prompt lists, a least length
    make short answers impossible; greedy means greedy.
    """
    from transformers import GenerationConfig

    known = model.generation_config
    # No forced first token either: answers are learned without one.
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    kept = {name: getattr(known, name, None) for name in ids}
    model.generation_config = GenerationConfig(**kept)  # type: ignore[no-untyped-call]


def prompt_room(config: object, kind: Kind, max_source: int, max_target: int) -> int:
    """Tokens a prompt may have: what is asked for, or fewer where the model's positions end.

    A decoder has one sequence for both, so room for the longest answer is kept.

    Raises:
        SettingsError: answers as long as asked leave a prompt none.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return max_source
    room = positions - (max_target if kind == "decoder" else 0)
    if room < 1:
        raise SettingsError(
            f"--max-target-length {max_target} leaves a prompt no room in the model's {positions} "
            "positions",
            hint="give the longest answer's tokens alone",
        )
    return min(max_source, room)


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256, in hex, over names, shapes and sampled values of `model`'s weights."""
    weights = model.state_dict()
    return fingerprint_of(weights, weights.__getitem__)


def fingerprint_of(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """The same of a model that is not loaded, one weight at a time.

    Args:
        names: of all weights of its state, shared ones under each name.
        read: gives one; a view of a file will do, of which little is then read.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        weight = read(name)
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(_sample(weight).numpy().tobytes())
    return digest.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    stride = max(1, flat.numel() // _SAMPLED_ENTRIES)
    # bf16 first, so that an fp32 and a bf16 load of the same file agree to the bit.
    sampled: Tensor = flat[::stride].to(torch.bfloat16).to("cpu", torch.float32)  # (~1024,)
    return sampled


def device_of(name: str, *, here: bool = False) -> torch.device:
    """The torch device of a `--device`.

    Args:
        here: whether it has to be one of this machine, with a memory of its own.

    Raises:
        SettingsError: torch knows none of that name, or it is not here.
    """
    try:
        device = torch.device(default_device() if name == "auto" else name)
        if here:
            if device == torch.device("cuda"):
                # Each process its own: one that only looked at the first would take room there.
                device = torch.device("cuda", processes.local_rank())
            torch.ones(1, device=device).item()
    # torch's own words: it knows no such name, sees no such GPU, or was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"--device {name} cannot be used: {str(error).splitlines()[0][:150]}",
            hint="give auto, cpu, or cuda where `ella env` names one",
        ) from error
    return device


def default_device() -> str:
    """What `--device auto` means on this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"


def default_dtype(device: torch.device) -> torch.dtype:
    """What `--dtype auto` means on a device that is here."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
