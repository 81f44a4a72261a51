"""Words and n-grams of a text as hashes: what duplicates and contamination are told by."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that multiplication modulo 2^64 loses nothing


def words(text: str) -> list[str]:
    """The words of a text without case, punctuation and spacing (NFKC). A Chinese character is a word: no blanks tell
    words there."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def ngram_hashes(text_words: list[str], n: int) -> np.ndarray:
    """uint64 [W - n + 1]: a hash of every run of n words, in order; empty for a text of fewer words.

    A polynomial in the words' hashes modulo 2^64, and murmur3's finaliser, which mixes its bits.
    """
    count = len(text_words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    each = np.fromiter(map(_word_hash, text_words), dtype=np.uint64, count=len(text_words))
    found = np.zeros(count, dtype=np.uint64)
    for at in range(n):
        found = found * np.uint64(_FACTOR) + each[at : at + count]
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        found = (found ^ (found >> np.uint64(33))) * np.uint64(factor)
    return found ^ (found >> np.uint64(33))
