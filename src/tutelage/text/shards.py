"""Token shards: memory-mapped ids with document offsets and the fingerprint of the tokenizer that made them.

A folder holds shard-00000.bin, ... (little-endian uint16, or uint32 for vocabularies above 65536), documents.npy
(int64 start of every document, in tokens, and the total at the end) and index.json.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tutelage.core.atomic import write_folder
from tutelage.core.errors import ConfigError, DataError
from tutelage.text.tokenizer import fingerprint

FORMAT = 1
_INDEX = "index.json"
_DOCUMENTS = "documents.npy"


@dataclass(frozen=True)
class ShardInfo:
    """What was written: token and document counts, shard files, bytes per token id, tokenizer fingerprint."""

    tokens: int
    documents: int
    shards: int
    dtype: str
    fingerprint: str


def id_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype[Any]:
    """The narrowest type that holds every id of the tokenizer."""
    return np.dtype("<u2") if len(tokenizer) <= 1 << 16 else np.dtype("<u4")


class _Writer:
    """Collects ids and cuts them into shard files of exactly `shard_tokens` (the last may be shorter)."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], vocab: int, shard_tokens: int) -> None:
        self.folder, self.dtype, self.vocab, self.limit = folder, dtype, vocab, shard_tokens
        self.sizes: list[int] = []
        self.offsets = array("q", [0])  # 8 bytes a document, where a list takes 36
        self._held: list[np.ndarray] = []
        self._count = 0

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        row = np.asarray(ids, dtype=np.int64)
        if row.min() < 0 or row.max() >= self.vocab:
            wrong = int(row.max() if row.max() >= self.vocab else row.min())
            raise DataError(f"shards: document {len(self.offsets)} holds id {wrong}, expected 0..{self.vocab - 1}")
        self.offsets.append(self.offsets[-1] + len(row))
        row = row.astype(self.dtype)
        while self._count + len(row) >= self.limit:
            cut = self.limit - self._count
            self._held.append(row[:cut])
            row = row[cut:]
            self.close_shard()
        if len(row):
            self._held.append(row)
            self._count += len(row)

    def close_shard(self) -> None:
        if not self._held:
            return
        data = np.concatenate(self._held)
        (self.folder / f"shard-{len(self.sizes):05d}.bin").write_bytes(data.tobytes())
        self.sizes.append(len(data))
        self._held, self._count = [], 0


def write_shards(
    dir: str | Path,
    documents: Iterable[Sequence[int] | np.ndarray],
    tokenizer: PreTrainedTokenizerBase,
    shard_tokens: int = 1 << 26,
) -> ShardInfo:
    """Write documents (lists of ids; end each with eos yourself) to the folder `dir`: it appears whole or not at all.

    Empty documents are left out. DataError for no document at all or an id outside the vocabulary; RunError when the
    disk refuses (full, read-only). An older folder of shards at `dir` is replaced; anything else there is refused.
    """
    if shard_tokens < 1:
        raise ConfigError(f"shard_tokens: {shard_tokens}, expected at least 1")
    target = Path(dir)
    if target.exists() and not (target / _INDEX).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists and is not a folder of token shards; name another or remove it")
    made: list[ShardInfo] = []
    write_folder(target, lambda aside: made.append(_write(aside, documents, tokenizer, shard_tokens)))
    return made[0]


def _write(
    folder: Path, documents: Iterable[Sequence[int] | np.ndarray], tokenizer: PreTrainedTokenizerBase, shard_tokens: int
) -> ShardInfo:
    vocab, dtype = len(tokenizer), id_dtype(tokenizer)
    writer = _Writer(folder, dtype, vocab, shard_tokens)
    for ids in documents:
        if len(ids):
            writer.add(ids)
    writer.close_shard()
    if not writer.sizes:
        raise DataError("shards: no document with a token in it, expected at least one")
    np.save(folder / _DOCUMENTS, np.asarray(writer.offsets, dtype=np.int64))
    info = ShardInfo(
        writer.offsets[-1], len(writer.offsets) - 1, len(writer.sizes), dtype.name, fingerprint(tokenizer)
    )
    index = {"format": FORMAT, "vocab_size": vocab, "sizes": writer.sizes, **vars(info)}
    (folder / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return info


class TokenShards:
    """A folder of shards, opened for reading. `tokens`: total; `documents`: int64 [D+1] offsets, the last the total.

    With a tokenizer given, its fingerprint must be the writer's. DataError for a folder that is missing, empty,
    truncated, or of another tokenizer.
    """

    def __init__(self, dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.dir = Path(dir)
        index = self._index()
        self.fingerprint: str = index["fingerprint"]
        self.vocab_size: int = index["vocab_size"]
        if tokenizer is not None and fingerprint(tokenizer) != self.fingerprint:
            raise DataError(
                f"{self.dir}: made with another tokenizer (fingerprint {self.fingerprint}, yours is "
                f"{fingerprint(tokenizer)}); prepare the data again with this tokenizer"
            )
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._maps = [self._map(number, size, dtype) for number, size in enumerate(index["sizes"])]
        self._starts = np.concatenate([[0], np.cumsum(index["sizes"])]).astype(np.int64)
        self.tokens = int(self._starts[-1])
        self.documents = self._offsets()

    def _index(self) -> dict[str, Any]:
        path = self.dir / _INDEX
        try:
            index = json.loads(path.read_text())
            tokens = sum(index["sizes"])
            if index["format"] != FORMAT:
                raise DataError(f"{path}: shard format {index['format']}, expected {FORMAT}; prepare the data again")
            if index["dtype"] not in ("uint16", "uint32") or not isinstance(index["fingerprint"], str):
                raise ValueError(f"dtype {index['dtype']!r}")
            index["vocab_size"] = int(index["vocab_size"])
        except FileNotFoundError as error:
            raise DataError(f"{self.dir}: no token shards here ({_INDEX} missing); prepare the data first") from error
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path}: broken shard index ({error}); prepare the data again") from error
        if not tokens:
            raise DataError(f"{self.dir}: the shards are empty, expected at least one token")
        return index

    def _map(self, number: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        path = self.dir / f"shard-{number:05d}.bin"
        found = path.stat().st_size if path.is_file() else -1
        if found != size * dtype.itemsize:
            what = "missing" if found < 0 else f"{found} bytes, expected {size * dtype.itemsize}: truncated or changed"
            raise DataError(f"{path}: {what}; prepare the data again")
        return np.memmap(path, dtype=dtype, mode="r", shape=(size,))

    def _offsets(self) -> np.ndarray:
        path = self.dir / _DOCUMENTS
        try:
            offsets = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: missing or broken ({error}); prepare the data again") from error
        if len(offsets) < 2 or offsets[-1] != self.tokens:
            raise DataError(f"{path}: document offsets do not match the shards; prepare the data again")
        return offsets

    def __len__(self) -> int:
        return self.tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """int64 [length] ids from token `start` on, across shard files; DataError outside 0..tokens."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise DataError(f"{self.dir}: tokens {start}..{start + length} asked, the shards hold {self.tokens}")
        out = np.empty(length, dtype=np.int64)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < length:
            at = start + done - int(self._starts[shard])
            piece = self._maps[shard][at : at + length - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1
        return out

    def counts(self) -> np.ndarray:
        """int64 [vocabulary]: how often each token occurs."""
        total = np.zeros(self.vocab_size, dtype=np.int64)
        for shard in self._maps:
            for at in range(0, len(shard), 1 << 24):
                total += np.bincount(shard[at : at + (1 << 24)], minlength=self.vocab_size)
        return total

    def document(self, number: int) -> np.ndarray:
        """int64 ids of one document, counted from 0."""
        start, end = int(self.documents[number]), int(self.documents[number + 1])
        return self.read(start, end - start)
