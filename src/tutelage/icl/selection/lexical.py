"""Sparse vectors of words: BM25 and TF-IDF, exact, in numpy.

N: texts, M: other texts, V: distinct words.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def words(text: str) -> list[str]:
    """Lower-case words; Chinese and Japanese, which have no blanks, by the character."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse [N, V] matrix by rows: row i holds ``values[starts[i]:starts[i+1]]`` in columns ``columns[...]``."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, rows: Iterable[Mapping[int, float]], width: int) -> SparseRows:
        """From one {column: value} a row."""
        rows = list(rows)
        starts = np.cumsum([0, *(len(row) for row in rows)])
        columns = np.fromiter((c for row in rows for c in row), dtype=np.int64, count=int(starts[-1]))
        values = np.fromiter((v for row in rows for v in row.values()), dtype=np.float64, count=int(starts[-1]))
        return cls(starts, columns, values, width)

    @functools.cached_property
    def by_column(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts [V+1], row numbers, values): the same matrix by columns, an inverted index."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=self.width))])
        return starts, rows[order], self.values[order]

    def dot(self, other: SparseRows) -> np.ndarray:
        """Inner products [N, M]. Only the rows of ``other`` that share a word with row i are visited for it."""
        starts, rows, values = other.by_column
        out = np.zeros((len(self), len(other)))
        for i in range(len(self)):
            here = slice(self.starts[i], self.starts[i + 1])
            for column, weight in zip(self.columns[here], self.values[here]):
                found = slice(starts[column], starts[column + 1])
                out[i, rows[found]] += weight * values[found]  # a row number occurs once in a column
        return out

    def norms(self) -> np.ndarray:
        """Euclidean length [N] of each row."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.starts))
        return np.sqrt(np.bincount(rows, weights=self.values**2, minlength=len(self)))

    def normalised(self) -> SparseRows:
        """Rows of length 1; empty rows stay empty."""
        scale = np.repeat(np.maximum(self.norms(), 1e-300), np.diff(self.starts))
        return SparseRows(self.starts, self.columns, self.values / scale, self.width)

    def take(self, chosen: Sequence[int] | np.ndarray) -> SparseRows:
        """The rows of those numbers."""
        places = [np.arange(self.starts[i], self.starts[i + 1]) for i in chosen]
        starts = np.cumsum([0, *(len(p) for p in places)])
        flat = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
        return SparseRows(starts, self.columns[flat], self.values[flat], self.width)


class Vocabulary:
    """The words of a collection, and in how many of its texts each stands."""

    def __init__(self, column: Mapping[str, int], frequency: np.ndarray, texts: int) -> None:
        self.column = dict(column)
        self.frequency = frequency
        self.texts = texts

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Vocabulary:
        """From the texts themselves; columns in the order of the first occurrence."""
        column: dict[str, int] = {}
        seen: Counter[int] = Counter()
        for text in texts:
            seen.update({column.setdefault(word, len(column)) for word in words(text)})
        return cls(column, np.array([seen[i] for i in range(len(column))], dtype=np.float64), len(texts))

    def __len__(self) -> int:
        return len(self.column)

    def counts(self, text: str) -> dict[int, float]:
        """How often each known word stands in a text: {column: count}; unknown words are dropped."""
        found = Counter(self.column[word] for word in words(text) if word in self.column)
        return {column: float(count) for column, count in found.items()}

    def count_rows(self, texts: Sequence[str]) -> SparseRows:
        """Word counts [N, V]."""
        return SparseRows.of((self.counts(text) for text in texts), len(self))


class TfIdf:
    """tf * (ln((1 + n) / (1 + df)) + 1), rows of length 1: the defaults of scikit-learn's TfidfVectorizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.idf = np.log((1 + vocabulary.texts) / (1 + vocabulary.frequency)) + 1

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TfIdf:
        """The weights of a collection."""
        return cls(Vocabulary.fit(texts))

    def rows(self, texts: Sequence[str]) -> SparseRows:
        """Unit vectors [N, V]; a text without a known word is all zeros."""
        counts = self.vocabulary.count_rows(texts)
        weighted = SparseRows(counts.starts, counts.columns, counts.values * self.idf[counts.columns], counts.width)
        return weighted.normalised()


def bm25(texts: Sequence[str], queries: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Okapi BM25 of each query against each text, float64 [Q, N]; a word that stands twice in a query counts twice.

    Robertson & Zaragoza 2009, with Lucene's idf = ln(1 + (N - df + 0.5) / (df + 0.5)), which is never
    negative: the original turns negative for words that stand in more than half of the texts.
    """
    vocabulary = Vocabulary.fit(texts)
    counts = vocabulary.count_rows(texts)
    lengths = np.array([len(words(text)) for text in texts], dtype=np.float64)
    relative = lengths / max(lengths.mean(), 1e-300) if len(texts) else lengths
    idf = np.log1p((vocabulary.texts - vocabulary.frequency + 0.5) / (vocabulary.frequency + 0.5))
    norm = np.repeat(k1 * (1 - b + b * relative), np.diff(counts.starts))
    weights = idf[counts.columns] * counts.values * (k1 + 1) / (counts.values + norm)
    weighted = SparseRows(counts.starts, counts.columns, weights, counts.width)
    return vocabulary.count_rows(queries).dot(weighted)
