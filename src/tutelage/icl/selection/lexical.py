"""Words of texts as sparse vectors: TF-IDF is scikit-learn's, BM25 is computed on its word counts.

N: texts, Q: queries, V: distinct words. scikit-learn is imported when first needed: it takes most of a second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_NO_WORD = "\0"
"""Stands in the vocabulary of texts without words, which scikit-learn refuses to be empty; no text has it."""


def words(text: str) -> list[str]:
    """Lower-case words; Chinese and Japanese, which have no blanks, by the character."""
    return _WORD.findall(text.lower())


def _fitted(kind: Any, texts: Sequence[str]) -> Any:
    known = None if any(words(text) for text in texts) else [_NO_WORD]
    return kind(analyzer=words, vocabulary=known, dtype=np.float64).fit(texts)


def tfidf(texts: Sequence[str]) -> Any:
    """scikit-learn's vectorizer, fitted; ``unit_rows`` gives what it makes of texts (a text without a known word is all
    zeros)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return _fitted(TfidfVectorizer, texts)


def unit_rows(vectorizer: Any, texts: Sequence[str]) -> csr_matrix:
    """The texts' rows [N, V]; unlike scikit-learn's, no texts give no rows."""
    return vectorizer.transform(texts) if len(texts) else csr_matrix((0, len(vectorizer.get_feature_names_out())))


def tfidf_state(vectorizer: Any) -> dict[str, Any]:
    """{"vocabulary", "idf"} of a fitted vectorizer, as JSON takes it."""
    return {"vocabulary": vectorizer.get_feature_names_out().tolist(), "idf": vectorizer.idf_.tolist()}


def restored_tfidf(state: Mapping[str, Any]) -> Any:
    """The vectorizer that ``tfidf_state`` described."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    made = TfidfVectorizer(analyzer=words, vocabulary=state["vocabulary"], dtype=np.float64)
    made.idf_ = np.array(state["idf"])
    return made


def bm25(texts: Sequence[str], queries: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """Okapi BM25 of each query against each text, float64 [Q, N]; a word that stands twice in a query counts twice.

    Robertson & Zaragoza 2009, with Lucene's idf = ln(1 + (N - df + 0.5) / (df + 0.5)), which is never
    negative: the original turns negative for words that stand in more than half of the texts.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = _fitted(CountVectorizer, texts)
    weighted = counter.transform(texts)
    lengths = np.asarray(weighted.sum(1)).ravel()
    frequency = np.bincount(weighted.indices, minlength=weighted.shape[1])
    idf = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
    relative = lengths / max(lengths.mean(), 1e-300)
    norm = np.repeat(k1 * (1 - b + b * relative), np.diff(weighted.indptr))
    weighted.data = idf[weighted.indices] * weighted.data * (k1 + 1) / (weighted.data + norm)
    return (counter.transform(queries) @ weighted.T).toarray()
