"""Documents that say the same: exactly (the same words in the same order) or nearly (MinHash).

Near: the sets of word 5-grams have a Jaccard similarity of at least a threshold, as the share of equal values among 128
MinHash values estimates it (Broder 1997). Candidates share a band of values (locality-sensitive hashing; Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", sec. 3.4); every candidate pair is then compared in all 128.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from datasketch import MinHash

from tutelage.text.ngrams import ngram_hashes, words

VALUES = 128
SHINGLE = 5
SURE = 0.999
"""A pair at the threshold shares a band at least with this probability."""


def digest(text_words: Sequence[str]) -> bytes:
    """16 bytes that two texts share if they have the same words in the same order."""
    return hashlib.blake2b(" ".join(text_words).encode(), digest_size=16).digest()


def compared(text: str) -> list[str]:
    """The words by which a text is compared; one of signs alone counts as one word."""
    return words(text) or [text.strip()]


def shingles(text_words: list[str]) -> np.ndarray:
    """uint64: the hashes of the text's word 5-grams; of a shorter text, of the whole."""
    return ngram_hashes(text_words, min(SHINGLE, len(text_words)))


@lru_cache(maxsize=1)
def _sketch() -> MinHash:
    return MinHash(num_perm=VALUES, seed=1, hashfunc=int)


def signature(text_words: list[str]) -> np.ndarray:
    """uint32 [128]: the text's MinHash values. Two texts agree in a share of them near their Jaccard similarity J
    (standard error sqrt(J (1 - J) / 128), at most 0.044)."""
    sketch = _sketch()
    sketch.clear()
    sketch.update_batch((np.unique(shingles(text_words)) >> np.uint64(32)).tolist())
    return sketch.hashvalues.astype(np.uint32)


def rows_of_a_band(threshold: float) -> int:
    """The most values a band can have so that a pair at the threshold shares one of the bands with probability SURE:
    1 - (1 - J^r)^(128 / r)."""
    rows = 1
    while 1 - (1 - threshold ** (rows + 1)) ** (VALUES // (rows + 1)) >= SURE:
        rows += 1
    return rows


def first_equal(digests: np.ndarray) -> np.ndarray:
    """int64 [N]: for each digest (uint64 [N, 2]) the place of the first that equals it."""
    keys = np.ascontiguousarray(digests).view([("a", np.uint64), ("b", np.uint64)])[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def first_near(signatures: Sequence[np.ndarray], among: np.ndarray, threshold: float) -> np.ndarray:
    """int64 [N]: for each document the place of the first one in its group of near-duplicates.

    `signatures`: uint32 [n, 128] of one file each, N rows together, memory-mapped if they are many; `among`: bool [N],
    which take part. No two documents that are first in their groups are near-duplicates (of the candidates); every
    other one is joined to an earlier one, directly or by a chain. The documents' order decides, nothing else. A band is
    looked at at a time: about 40 bytes a document in memory, whatever the number of bands.
    """
    starts = np.concatenate([[0], np.cumsum([len(part) for part in signatures])])
    parent = np.arange(starts[-1])
    rows = rows_of_a_band(threshold)

    def of(document: int) -> np.ndarray:
        part = int(np.searchsorted(starts, document, side="right")) - 1
        return signatures[part][document - starts[part]]

    for band in range(VALUES // rows):
        columns = slice(band * rows, (band + 1) * rows)
        keys = np.concatenate([_joined(part[:, columns]) for part in signatures])
        for bucket in _buckets(keys, among):
            apart: list[int] = []  # of the bucket, those that are near no earlier one of it
            for document in bucket:
                mine = of(document)
                near = next((d for d in apart if np.mean(of(d) == mine) >= threshold), None)
                if near is None:
                    apart.append(document)
                else:
                    _join(parent, near, document)
    return np.array([_root(parent, document) for document in range(len(parent))], dtype=np.int64)


def _joined(columns: np.ndarray) -> np.ndarray:
    """uint64 [n]: one key for the values [n, r] of a band (a collision costs a comparison, no more)."""
    key = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        key = (key ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    return key


def _buckets(keys: np.ndarray, among: np.ndarray) -> Iterator[list[int]]:
    """Groups of at least two places in `among` that have the same key, places ascending."""
    places = np.flatnonzero(among)
    order = places[np.argsort(keys[places], kind="stable")]
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    for start, end in zip([0, *ends], [*ends, len(order)]):
        if end - start > 1:
            yield order[start:end].tolist()


def _root(parent: np.ndarray, document: int) -> int:
    while parent[document] != document:
        parent[document] = parent[parent[document]]
        document = int(parent[document])
    return document


def _join(parent: np.ndarray, one: int, other: int) -> None:
    first, second = sorted((_root(parent, one), _root(parent, other)))
    parent[second] = first
