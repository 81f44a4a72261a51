"""BM25 and TF-IDF against straightforward loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.icl.selection_helpers import sentences
from tutelage.icl.selection.embed import row_norms, similarity
from tutelage.icl.selection.lexical import bm25, restored_tfidf, tfidf, tfidf_state, unit_rows, words

TEXTS = st.lists(st.text(alphabet="abAB 你好!,", max_size=20), min_size=1, max_size=8)


def loop_bm25(texts, query, k1=1.2, b=0.75):
    """The formula, read aloud."""
    documents = [words(t) for t in texts]
    mean = sum(len(d) for d in documents) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query):
            frequency = sum(word in d for d in documents)
            idf = math.log(1 + (len(documents) - frequency + 0.5) / (frequency + 0.5))
            tf = document.count(word)
            if tf:
                score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


def loop_tfidf(texts, text):
    """{word: weight} of a text, length 1."""
    documents = [set(words(t)) for t in texts]
    found = [w for w in words(text) if any(w in d for d in documents)]
    weights = {
        w: found.count(w) * (math.log((1 + len(texts)) / (1 + sum(w in d for d in documents))) + 1) for w in found
    }
    norm = math.sqrt(sum(v * v for v in weights.values()))
    return {w: v / norm for w, v in weights.items()}


def test_words_are_lower_case_and_chinese_comes_by_the_character():
    assert words("It's GOOD, 不错 的film2!") == ["it", "s", "good", "不", "错", "的", "film2"]
    assert words("?! ...") == []


@given(TEXTS, st.lists(st.text(alphabet="abcAB 你好", max_size=10), min_size=1, max_size=4))
def test_bm25_is_the_loops(texts, queries):
    expected = [loop_bm25(texts, query) for query in queries]
    np.testing.assert_allclose(bm25(texts, queries), expected, rtol=1e-12, atol=1e-12)


def test_bm25_on_a_hundred_sentences_and_other_constants():
    texts, queries = sentences(100, seed=0), sentences(20, seed=1)
    for k1, b in ((1.2, 0.75), (1.5, 0.0), (0.0, 1.0)):
        expected = [loop_bm25(texts, query, k1, b) for query in queries]
        np.testing.assert_allclose(bm25(texts, queries, k1, b), expected, rtol=1e-12, atol=1e-12)


@given(TEXTS, TEXTS)
def test_tfidf_is_the_loops(texts, others):
    model = tfidf(texts)
    rows, other = unit_rows(model, texts), unit_rows(restored_tfidf(tfidf_state(model)), others)
    weights = [loop_tfidf(texts, t) for t in texts]
    expected = [[sum(v * w.get(k, 0.0) for k, v in loop_tfidf(texts, t).items()) for w in weights] for t in others]
    np.testing.assert_allclose(similarity(other, rows, "dot"), expected, rtol=1e-12, atol=1e-12)
    for norm, text in zip(row_norms(rows), texts):
        assert norm == pytest.approx(1.0 if words(text) else 0.0)
