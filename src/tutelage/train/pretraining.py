"""What the pretraining objectives other than the causal one need: the model, its tokens, and batches of both parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tutelage.core.errors import ConfigError
from tutelage.model.hub import create_model, load_model
from tutelage.model.kinds import WORDS, Kind, model_kind
from tutelage.model.presets import kind_of, preset_of
from tutelage.text.corrupt import raw_length, span_counts
from tutelage.text.denoise import Corrupted, Make, SegmentPairs, masked_rows, prefix_rows, span_rows
from tutelage.text.loader import BlockLoader
from tutelage.text.shards import TokenShards
from tutelage.text.tokenizer import ensure_masked, ensure_pad, ensure_sentinels
from tutelage.train.loop import Objective
from tutelage.train.objectives import masked, seq2seq

Denoising = Literal["masked", "span", "prefix"]
KINDS: dict[str, Kind] = {"causal": "causal", "masked": "masked", "span": "seq2seq", "prefix": "seq2seq"}
_PRESET_KINDS: dict[str, Kind] = {"decoder": "causal", "masked LM": "masked", "encoder-decoder": "seq2seq"}
_EXAMPLES = {"causal": "laptop-1m", "masked": "laptop-bert-1m", "seq2seq": "laptop-t5-1m"}
HELD_TOKENS = 24_000


def require_kind(objective: str, kind: Kind, model: str) -> None:
    """ConfigError where a model of that kind cannot be trained by that objective."""
    if kind != KINDS[objective]:
        right = ", ".join(name for name, found in KINDS.items() if found == kind)
        raise ConfigError(
            f"model={model} is {WORDS[kind]} and objective={objective} trains {WORDS[KINDS[objective]]}; choose "
            f"objective={right.replace(', ', ' or ')}, or model=preset:{_EXAMPLES[KINDS[objective]]}"
        )


def check_preset(objective: str, model: str, next_sentence: bool) -> None:
    """ConfigError for a preset that does not fit the objective, before anything is loaded."""
    preset = model.startswith("preset:")
    if preset:
        require_kind(objective, _PRESET_KINDS[kind_of(model)], model)
    if next_sentence and not (objective == "masked" and preset and preset_of(model)["family"] == "bert"):
        raise ConfigError(
            "next_sentence=true needs objective=masked and a BERT from scratch, e.g. model=preset:laptop-bert-1m"
        )


@dataclass
class Setting:
    """A model ready to be trained by a denoising objective, its tokenizer with all that it needs."""

    model: Any
    tokenizer: Any
    objective: Denoising
    sentinels: list[int]
    next_sentence: bool
    rate: float
    span: float

    @property
    def loss(self) -> Objective:
        """(model, batch) -> loss."""
        return masked if self.objective == "masked" else seq2seq

    def loader(self, shards: TokenShards, batch_size: int, block_size: int, seed: int, shuffle: bool = True) -> Any:
        """Endless batches of rows of at most `block_size` tokens that the model reads."""
        if self.next_sentence:
            return SegmentPairs(shards, self.tokenizer, batch_size, block_size, seed, self.rate)
        blocks = BlockLoader(shards, batch_size, self.text_length(block_size), seed, shuffle=shuffle)
        start = None if self.objective == "masked" else self.model.config.decoder_start_token_id
        return Corrupted(blocks, self._make(), self.tokenizer.pad_token_id, start)

    def text_length(self, block_size: int) -> int:
        """Tokens of text in a row."""
        if self.objective == "span":
            return raw_length(block_size, self.rate, self.span)
        return block_size - (2 if self.objective == "masked" else 1)

    def _make(self) -> Make:
        if self.objective == "masked":
            return masked_rows(self.tokenizer, self.rate)
        if self.objective == "span":
            return span_rows(self.tokenizer, self.sentinels, self.rate, self.span)
        return prefix_rows(self.tokenizer)

    def held(self, shards: TokenShards, batch_size: int, block_size: int) -> Iterable[Any]:
        """The same batches of held-out text at every call, corrupted always alike; about `HELD_TOKENS` at most."""
        units = len(shards.documents) - 1 if self.next_sentence else shards.tokens // self.text_length(block_size)
        size = max(1, min(batch_size, units))
        loader: Iterator[Any] = self.loader(shards, size, block_size, seed=0)
        return islice(loader, max(1, min(units, HELD_TOKENS // block_size) // size))

    def seen(self, counts: np.ndarray, block_size: int) -> Tensor:
        """bool [V]: the tokens that training shows the model, given their counts in the text."""
        out = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        out[: len(counts)] = torch.from_numpy(counts > 0)
        t = self.tokenizer
        spans = span_counts(self.text_length(block_size), self.rate, self.span)[1] if self.objective == "span" else 0
        shown = [t.pad_token_id, t.eos_token_id, t.mask_token_id, t.cls_token_id, t.sep_token_id]
        out[[i for i in [*shown, *self.sentinels[:spans]] if i is not None]] = True
        return out


def setting(
    objective: Denoising, name: str, tokenizer: Any, max_length: int, block_size: int, seed: int, *,
    next_sentence: bool = False, rate: float = 0.15, span: float = 3.0,
) -> Setting:  # fmt: skip
    """The model `name` (a preset, folder or hub id) made ready. ConfigError where it does not fit the objective."""
    ensure_pad(tokenizer)
    sentinels: list[int] = []
    if objective == "masked":
        ensure_masked(tokenizer)
    else:
        sentinels = ensure_sentinels(tokenizer)
    if name.startswith("preset:"):
        more: dict[str, Any] = {"architectures": ["BertForPreTraining"]} if next_sentence else {}
        model: Any = create_model(name, tokenizer, max_length, seed, **more)
    else:
        model, tokenizer = load_model(name, tokenizer, any_kind=True)
        require_kind(objective, model_kind(model), name)
    made = Setting(model, tokenizer, objective, sentinels, next_sentence, rate, span)
    if objective == "span" and (spans := span_counts(made.text_length(block_size), rate, span)[1]) > len(sentinels):
        raise ConfigError(
            f"block_size={block_size}: {spans} spans in a row and {len(sentinels)} sentinels; lower block_size or "
            f"mask_rate, or raise span_length"
        )
    return made
