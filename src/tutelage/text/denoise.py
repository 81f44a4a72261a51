"""Batches of the pretraining objectives: blocks or documents of token shards, corrupted as they are read.

What is drawn for a row depends on the seed and on the row's place in the order alone: another visit of the same text is
corrupted otherwise (dynamic masking), and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tutelage.core.errors import DataError
from tutelage.text.corrupt import corrupt_spans, mask_tokens, next_segments, split_prefix
from tutelage.text.loader import IGNORED, Batch, BlockLoader, check_state, collate
from tutelage.text.shards import TokenShards

Row = dict[str, Any]
Make = Callable[[np.ndarray, np.random.Generator], Row]


def ordinary_ids(tokenizer: Any) -> np.ndarray:
    """int64, ascending: the ids of a tokenizer that are no special tokens."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids).astype(np.int64)


def masked_rows(tokenizer: Any, rate: float = 0.15) -> Make:
    """Full sentences (RoBERTa): [CLS] text [SEP], whatever documents the text spans; their ends stay within."""
    ordinary = ordinary_ids(tokenizer)
    before, after = [tokenizer.cls_token_id], [tokenizer.sep_token_id]

    def make(ids: np.ndarray, rng: np.random.Generator) -> Row:
        whole = np.concatenate([before, ids, after])
        inputs, labels = mask_tokens(whole, rng, mask_id=tokenizer.mask_token_id, ordinary=ordinary, rate=rate)
        return {"input_ids": inputs, "labels": labels}

    return make


def span_rows(tokenizer: Any, sentinels: Sequence[int], rate: float = 0.15, mean: float = 3.0) -> Make:
    """T5's span corruption."""

    def make(ids: np.ndarray, rng: np.random.Generator) -> Row:
        found = corrupt_spans(ids, rng, sentinels=sentinels, eos=tokenizer.eos_token_id, rate=rate, mean=mean)
        return {"input_ids": found[0], "labels": found[1]}

    return make


def prefix_rows(tokenizer: Any) -> Make:
    """Prefix LM: the encoder reads a beginning, the decoder writes the rest."""

    def make(ids: np.ndarray, rng: np.random.Generator) -> Row:
        inputs, target = split_prefix(ids, rng, eos=tokenizer.eos_token_id)
        return {"input_ids": inputs, "labels": target}

    return make


def collate_pairs(rows: Sequence[Row], pad_id: int, start: int | None) -> Batch:
    """Right-padded input_ids, attention_mask and labels [B, T] each; with `start` (the token that a decoder begins
    with), labels of a length of their own and decoder_input_ids, which are the labels moved one step right."""
    batch = collate([{"input_ids": row["input_ids"]} for row in rows], pad_id)
    targets = collate([{"input_ids": row["labels"]} for row in rows], IGNORED)["input_ids"]
    batch["labels"] = targets
    if start is not None:
        moved = torch.full_like(targets, start)
        moved[:, 1:] = targets[:, :-1].masked_fill(targets[:, :-1] == IGNORED, pad_id)
        batch["decoder_input_ids"] = moved
    for key in ("token_type_ids", "next_sentence_label"):
        if key in rows[0]:
            width = batch["input_ids"].shape[1]
            wide = [np.pad(row[key], (0, width - len(row[key]))) if np.ndim(row[key]) else row[key] for row in rows]
            batch[key] = torch.from_numpy(np.stack(wide).astype(np.int64))
    return batch


class Corrupted:
    """The blocks of a BlockLoader, each made into a row by `make` and collated; `start` as in `collate_pairs`."""

    def __init__(self, blocks: BlockLoader, make: Make, pad_id: int, start: int | None = None) -> None:
        self.blocks, self.make, self.pad_id, self.start = blocks, make, pad_id, start

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rng = np.random.default_rng([self.blocks.seed, 1, self.blocks.position])
        rows = [self.make(ids, rng) for ids in next(self.blocks)["input_ids"].numpy()]
        return collate_pairs(rows, self.pad_id, self.start)

    @property
    def handed(self) -> list[int]:
        """The last batch's blocks."""
        return self.blocks.handed

    def state_dict(self) -> dict[str, Any]:
        """The state of the blocks; the draws follow from it."""
        return self.blocks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was taken."""
        self.blocks.load_state_dict(state)


class SegmentPairs:
    """BERT's rows, [CLS] A [SEP] B [SEP] with token_type_ids and next_sentence_label (0: B follows A), masked.

    Documents come in a new shuffle each epoch, every one once; those of 3 tokens or fewer, special ones included, are
    left out. Endless.
    """

    def __init__(
        self, shards: TokenShards, tokenizer: Any, batch_size: int, block_size: int, seed: int = 0, rate: float = 0.15
    ) -> None:
        self.shards, self.tokenizer, self.batch_size, self.seed = shards, tokenizer, batch_size, seed
        self.room, self.rate, self.ordinary = block_size - 3, rate, ordinary_ids(tokenizer)
        self.documents = np.flatnonzero(np.diff(shards.documents) > 3)  # bos and eos may be among them
        if len(self.documents) < 2:
            raise DataError(f"{shards.dir}: next_sentence needs two documents of 4 tokens or more; prepare more text")
        self.position = 0
        self.handed: list[int] = []  # the last batch's row numbers, epoch after epoch
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.documents))
        return self._order[1]

    def _text(self, number: int) -> np.ndarray:
        ids = self.shards.document(number)
        return ids[np.isin(ids, self.ordinary)]

    def __next__(self) -> Batch:
        rng = np.random.default_rng([self.seed, 1, self.position])
        self.handed = list(range(self.position, self.position + self.batch_size))
        rows = [self._row(p, rng) for p in self.handed]
        self.position += self.batch_size
        return collate_pairs(rows, self.tokenizer.pad_token_id, None)

    def _row(self, position: int, rng: np.random.Generator) -> Row:
        epoch, at = divmod(position, len(self.documents))
        order = self._shuffled(epoch)
        away = int(rng.integers(1, len(order)))  # any document but the row's own
        own, other = (self._text(int(order[i % len(order)])) for i in (at, at + away))
        first, second, follows = next_segments(own, other, rng, self.room)
        before, between = [self.tokenizer.cls_token_id], [self.tokenizer.sep_token_id]
        whole = np.concatenate([before, first, between, second, between])
        inputs, labels = mask_tokens(
            whole, rng, mask_id=self.tokenizer.mask_token_id, ordinary=self.ordinary, rate=self.rate
        )
        kinds = np.repeat([0, 1], [len(first) + 2, len(second) + 1])
        return {"input_ids": inputs, "labels": labels, "token_type_ids": kinds, "next_sentence_label": int(not follows)}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"position": self.position, "seed": self.seed, "data": [self.shards.fingerprint, self.shards.tokens]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was taken. ConfigError for another seed or other data."""
        check_state(state, self.state_dict())
        self.position = int(state["position"])
