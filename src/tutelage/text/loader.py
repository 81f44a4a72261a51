"""Batches, in an order fixed by the seed: the same on any number of ranks, and resumable to the batch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage.core.distributed import rank, world_size
from tutelage.core.errors import ConfigError, DataError
from tutelage.text.shards import TokenShards

IGNORED = -100
Batch = dict[str, Tensor]
Row = Mapping[str, Sequence[int]]
_FILL = {"labels": IGNORED, "attention_mask": 0, "position_ids": 0, "document_ids": -1}


def share() -> dict[str, Any]:
    """A training loader's `rank` and `world_size` in this process."""
    return {"rank": rank(), "world_size": world_size()}


def _check_ranks(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"loader: rank {rank} of {world_size}, expected 0 <= rank < world_size")


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """ConfigError where a saved loader's state is of another run than `own`; the position apart."""
    for key, value in own.items():
        if key != "position" and state.get(key) != value:
            raise ConfigError(f"loader: the saved state has {key}={state.get(key)!r}, this run has {value!r}")


class BlockLoader:
    """Blocks of `block_size` tokens in a new shuffle each epoch (or, with shuffle=False, in the file's order: a
    curriculum), every block once an epoch.

    Yields {"input_ids": int64 [B, T], "labels": int64 [B, T]}, labels equal to input_ids (the loss does the shift).
    `batch_size` is the global batch; rank r of w gets its r-th slice, so the order does not depend on w.
    Endless by default (a batch may span two epochs); with `epochs`, it ends after them, the last batch perhaps smaller
    (a rank left without a row gets one with all labels -100, so that every rank takes every step).
    With `mark_documents`, also position_ids [B, T] (from 0 in each document) and document_ids [B, T] (0, 1, ... in the
    block): attention then stays inside a document, and the first label of each document is -100.
    """

    def __init__(
        self,
        shards: TokenShards,
        batch_size: int,
        block_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        mark_documents: bool = False,
        shuffle: bool = True,
    ) -> None:
        _check_ranks(rank, world_size)
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch_size: {batch_size}, expected a positive multiple of the {world_size} ranks")
        if block_size < 2:
            raise ConfigError(f"block_size: {block_size}, expected at least 2 (one token predicts the next)")
        self.blocks = shards.tokens // block_size
        if not self.blocks:
            raise DataError(f"{shards.dir}: {shards.tokens} tokens, fewer than one block of {block_size}")
        self.shards, self.batch_size, self.block_size, self.seed = shards, batch_size, block_size, seed
        self.rank, self.world_size, self.epochs, self.mark_documents = rank, world_size, epochs, mark_documents
        self.shuffle = shuffle
        self.position = 0  # blocks handed out so far, over all ranks and epochs
        self.handed: list[int] = []  # the last batch's blocks on this rank
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.position / self.blocks

    def _block(self, position: int) -> int:
        epoch, at = divmod(position, self.blocks)
        if not self.shuffle:
            return at
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.blocks))
        return int(self._order[1][at])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        end = self.position + self.batch_size
        if self.epochs is not None:
            end = min(end, self.epochs * self.blocks)
        if end <= self.position:
            raise StopIteration
        blocks = [self._block(p) for p in range(self.position, end)]
        share = -(-len(blocks) // self.world_size)
        own = blocks[self.rank * share : (self.rank + 1) * share]
        self.position = end
        self.handed = own
        width = self.block_size
        ids = torch.from_numpy(np.stack([self.shards.read(block * width, width) for block in own or blocks[:1]]))
        batch = {"input_ids": ids, "labels": ids.clone()}
        if self.mark_documents:
            starts = np.stack([self._starts(block) for block in own or blocks[:1]])
            place = np.arange(width)
            batch["document_ids"] = torch.from_numpy(starts.cumsum(1) - 1)
            batch["position_ids"] = torch.from_numpy(place - np.maximum.accumulate(np.where(starts, place, 0), 1))
            batch["labels"][torch.from_numpy(starts)] = IGNORED
        if not own:
            batch["labels"].fill_(IGNORED)
        return batch

    def _starts(self, block: int) -> np.ndarray:
        """bool [T]: where a document begins in the block; its first token always counts as one."""
        start = block * self.block_size
        first, last = np.searchsorted(self.shards.documents, [start, start + self.block_size])
        marks = np.zeros(self.block_size, dtype=bool)
        marks[self.shards.documents[first:last] - start] = True
        marks[0] = True
        return marks

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "block_size": self.block_size, "data": [self.shards.fingerprint, self.shards.tokens]}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the same on every rank, and valid for another world size or batch size."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was taken. ConfigError for another seed, block size or data."""
        check_state(state, self._identity())
        self.position = int(state["position"])


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Right-padded int64 [B, longest] tensors of the rows' keys, and an attention_mask (1 on real tokens).

    Pads: pad_id in input_ids, -100 in labels, 0 in position_ids, -1 in document_ids.
    """
    width = max(len(row["input_ids"]) for row in rows)
    keys = [key for key in rows[0] if key in ("input_ids", *_FILL)]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch = {}
    for key in keys:
        table = np.full((len(rows), width), pad_id if key == "input_ids" else _FILL[key], dtype=np.int64)
        for number, row in enumerate(rows):
            table[number, : len(row[key])] = row[key]
        batch[key] = torch.from_numpy(table)
    batch.setdefault("attention_mask", (torch.arange(width)[None, :] < lengths[:, None]).long())
    return batch


def collate_flat(rows: Sequence[Row]) -> Batch:
    """The rows one behind another, nothing padded: input_ids, labels and position_ids [1, N], and lengths [B].

    A row may hold several documents (`pack_rows`): lengths are theirs. A document's first label is -100: the token
    before it belongs to another one.
    """
    flat = {key: np.concatenate([row[key] for row in rows]) for key in ("input_ids", "labels")}
    places = [row.get("position_ids") or range(len(row["input_ids"])) for row in rows]
    flat["position_ids"] = np.concatenate([np.asarray(place) for place in places])
    starts = np.flatnonzero(flat["position_ids"] == 0)
    flat["labels"][starts] = IGNORED
    batch = {key: torch.from_numpy(values.astype(np.int64))[None] for key, values in flat.items()}
    return {**batch, "lengths": torch.from_numpy(np.diff(starts, append=len(flat["labels"])))}


def cut_by_tokens(numbers: Sequence[int], lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """The row numbers, in their order, in groups of at most `budget` tokens (rows x longest row, padding counted).

    A row longer than that makes a group of its own.
    """
    out: list[list[int]] = []
    longest = 0
    for number in numbers:
        longest = max(longest, int(lengths[number]))
        if not out or (len(out[-1]) + 1) * longest > budget:
            out.append([])
            longest = int(lengths[number])
        out[-1].append(number)
    return out


class RowLoader:
    """Shuffled, length-bucketed batches of rows {"input_ids", "labels"}, right-padded (see `collate`).

    Give either `batch_size` (rows) or `token_budget` (rows x longest row <= budget, padding counted). Every row comes
    once an epoch. Rank r of w gets rows r, r+w, ... of each global batch; where a batch has too few rows, a rank gets a
    copy with all labels -100, so that every rank takes every step. Endless unless `epochs` is given. `flat`: rows one
    behind another instead of padded (see `collate_flat`).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        batch_size: int | None = None,
        token_budget: int | None = None,
        seed: int = 0,
        pad_id: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        shuffle: bool = True,
        flat: bool = False,
    ) -> None:
        _check_ranks(rank, world_size)
        self.flat = flat
        if (batch_size is None) == (token_budget is None):
            raise ConfigError("loader: give exactly one of batch_size and token_budget")
        if (batch_size if batch_size is not None else token_budget or 0) < 1:
            raise ConfigError("loader: batch_size and token_budget must be at least 1")
        if not rows:
            raise DataError("loader: no rows, expected at least one")
        self.lengths = np.array([len(row["input_ids"]) for row in rows])
        for number, row in enumerate(rows):
            if not self.sound(row):
                raise DataError(f"loader: row {number} is empty, or its labels are not as long as its input_ids")
        if token_budget is not None and self.lengths.max() > token_budget:
            worst = int(self.lengths.argmax())
            raise DataError(
                f"loader: row {worst} has {self.lengths[worst]} tokens, more than token_budget {token_budget}"
            )
        self.rows, self.batch_size, self.token_budget, self.seed, self.pad_id = (
            rows, batch_size, token_budget, seed, pad_id,
        )  # fmt: skip
        self.rank, self.world_size, self.epochs, self.shuffle = rank, world_size, epochs, shuffle
        self.position = (0, 0)  # epoch, batches of it handed out
        self.handed: list[int] = []  # the last batch's rows on this rank
        self._plan: tuple[int, list[list[int]]] | None = None

    def batches(self, epoch: int) -> list[list[int]]:
        """Row numbers of every global batch of an epoch, in order."""
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._make(epoch))
        return self._plan[1]

    def _make(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.rows)) if self.shuffle else np.arange(len(self.rows))
        # Sorting inside windows of 50 batches keeps lengths alike in a batch while epochs still differ.
        per_batch = self.batch_size or max(1, int((self.token_budget or 1) / self.lengths.mean()))
        window = 50 * per_batch
        plan: list[list[int]] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            if self.shuffle:
                part = part[np.argsort(self.lengths[part], kind="stable")]
            plan += self._cut([int(i) for i in part])
        return [plan[i] for i in rng.permutation(len(plan))] if self.shuffle else plan

    def _cut(self, numbers: list[int]) -> list[list[int]]:
        if self.token_budget is not None:
            return cut_by_tokens(numbers, self.lengths, self.token_budget)
        size = self.batch_size or 1
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        epoch, at = self.position
        if at >= len(self.batches(epoch)):
            epoch, at = epoch + 1, 0
        if self.epochs is not None and epoch >= self.epochs:
            raise StopIteration
        numbers = self.batches(epoch)[at]
        self.position = (epoch, at + 1)
        self.handed = numbers[self.rank :: self.world_size]
        own: list[Row] = [self.rows[i] for i in self.handed]
        if not own:
            row = self.rows[numbers[0]]
            own = [{**row, "labels": [IGNORED] * len(row["labels"])}]
        return self.batch(own)

    def sound(self, row: Row) -> bool:
        """Whether a row can be trained on."""
        return 0 < len(row["input_ids"]) == len(row["labels"])

    def batch(self, rows: Sequence[Row]) -> Batch:
        """The rows as tensors."""
        return collate_flat(rows) if self.flat else collate(rows, self.pad_id)

    def _identity(self) -> dict[str, Any]:
        size = {"batch_size": self.batch_size, "token_budget": self.token_budget}
        return {"seed": self.seed, **size, "data": [len(self.rows), int(self.lengths.sum())]}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the same on every rank."""
        return {"position": list(self.position), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which the state was taken. ConfigError for another seed, size or data."""
        check_state(state, self._identity())
        epoch, at = state["position"]
        self.position = (int(epoch), int(at))


class Mixed:
    """Batches of one loader, each with a batch of a second one under "ptx": pretraining text beside dialogues."""

    def __init__(self, main: Any, text: BlockLoader) -> None:
        self.main, self.text = main, text

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return {**next(self.main), "ptx": next(self.text)}

    @property
    def handed(self) -> dict[str, Any]:
        """The last batch's rows, and its blocks of text."""
        return {"rows": self.main.handed, "text": self.text.handed}

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"main": self.main.state_dict(), "text": self.text.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue both."""
        self.main.load_state_dict(state["main"])
        self.text.load_state_dict(state["text"])


def pack_rows(rows: Sequence[Row], block_size: int) -> list[dict[str, list[int]]]:
    """Best-fit-decreasing packing of {"input_ids","labels"} rows into rows of at most `block_size` tokens.

    Each packed row has input_ids, labels, position_ids (from 0 in each document) and document_ids (0, 1, ... in it): a
    token may attend only to its own document. The first label of each document is -100, as it would otherwise be
    predicted from the document before. DataError for a row longer than block_size; no token is lost.
    """
    free: list[tuple[int, int]] = []  # (room left, bin), sorted, so that the tightest fit is found by bisection
    bins: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])):
        length = len(rows[number]["input_ids"])
        if length > block_size:
            raise DataError(f"pack: row {number} has {length} tokens, more than block_size {block_size}")
        at = bisect_left(free, (length, -1))
        room, bin_ = free.pop(at) if at < len(free) else (block_size, len(bins))
        if bin_ == len(bins):
            bins.append([])
        bins[bin_].append(number)
        if room > length:
            insort(free, (room - length, bin_))
    return [_join([rows[i] for i in numbers]) for numbers in bins]


def _join(rows: Sequence[Row]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "document_ids": []}
    for document, row in enumerate(rows):
        length = len(row["input_ids"])
        out["input_ids"] += row["input_ids"]
        out["labels"] += [IGNORED, *row["labels"][1:]] if length else []
        out["position_ids"] += range(length)
        out["document_ids"] += [document] * length
    return out
