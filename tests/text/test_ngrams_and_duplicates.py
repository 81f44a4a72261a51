"""Words, n-gram hashes, exact and near-duplicates, contamination: against brute force on small sets."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.text.contamination import COMMON, Evaluations
from tutelage.text.duplicates import (
    SURE,
    VALUES,
    compared,
    digest,
    first_equal,
    first_near,
    rows_of_a_band,
    signature,
)
from tutelage.text.ngrams import ngram_hashes, words

few_words = st.lists(st.sampled_from("abcde"), max_size=30)


def test_words_leave_out_case_and_signs_and_cut_chinese_into_characters():
    assert words("Hello,  WORLD! It's 3.14\n") == ["hello", "world", "it", "s", "3", "14"]
    assert words("明月,光2x") == ["明", "月", "光", "2x"]
    assert words("ＡＢ") == ["ab"] and words("?!") == []


@given(few_words, st.integers(1, 6))
def test_ngram_hashes_are_equal_where_the_ngrams_are(text, n):
    hashes = ngram_hashes(text, n).tolist()
    grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(zip(hashes, grams))) == len(set(hashes)) == len(set(grams))


def grams_of(text):
    text = text.split()
    n = min(5, len(text))
    return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}


def jaccard(a, b):
    return len(grams_of(a) & grams_of(b)) / len(grams_of(a) | grams_of(b))


def corpus(seed, count=60):
    """Texts, some of them others with a few words changed, so that similarities of every height occur."""
    random.seed(seed)
    out = []
    for _ in range(count):
        if out and random.random() < 0.6:
            text = random.choice(out).split()
            for _ in range(random.randint(0, 6)):
                text[random.randrange(len(text))] = f"w{random.randrange(2000)}"
        else:
            text = [f"w{random.randrange(2000)}" for _ in range(random.randint(60, 200))]
        out.append(" ".join(text))
    return out


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6))
def test_near_duplicates_against_brute_force(seed):
    texts = corpus(seed)
    signatures = np.stack([signature(compared(t)) for t in texts])
    first = first_near([signatures[:20], signatures[20:20], signatures[20:]], np.ones(len(texts), bool), 0.7)
    margin = 5 * np.sqrt(0.7 * 0.3 / VALUES)  # of the estimate: five standard errors
    kept = np.flatnonzero(first == np.arange(len(texts)))
    assert 0 in kept and (first <= np.arange(len(texts))).all() and np.isin(first, kept).all()
    assert all(jaccard(texts[a], texts[b]) < 0.7 + margin for a in kept for b in kept if a < b)
    for gone in np.flatnonzero(first != np.arange(len(texts))):
        assert max(jaccard(texts[gone], texts[d]) for d in range(len(texts)) if d != gone) > 0.7 - margin
    whole = np.array([[np.mean(a == b) for a in signatures] for b in signatures])
    assert (whole[np.ix_(kept, kept)][np.triu_indices(len(kept), 1)] < 0.7).all()  # of the estimate itself, exactly


def test_the_estimate_is_the_jaccard_similarity():
    texts = corpus(1, 40)
    pairs = [(a, b) for a in range(40) for b in range(a)]
    found = {t: signature(compared(t)) for t in texts}
    off = [np.mean(found[texts[a]] == found[texts[b]]) - jaccard(texts[a], texts[b]) for a, b in pairs]
    assert abs(np.mean(off)) < 0.005 and max(map(abs, off)) < 0.2


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_miss_few_pairs_at_the_threshold(threshold):
    rows = rows_of_a_band(threshold)
    shared = [1 - (1 - threshold**r) ** (VALUES // r) for r in (rows, rows + 1)]
    assert shared[0] >= SURE > shared[1]


@given(st.lists(few_words, max_size=40))
def test_exact_duplicates_are_those_with_the_same_words(texts):
    digests = np.frombuffer(b"".join(digest(t) for t in texts), dtype="<u8").reshape(-1, 2)
    assert first_equal(digests).tolist() == [texts.index(t) for t in texts]


def test_texts_of_signs_are_no_duplicates_of_one_another():
    assert digest(compared("* * *")) != digest(compared("...")) and digest(compared("Yes.")) == digest(compared("yes"))
    assert (signature(compared("* * *")) != signature(compared("..."))).all()


examples = st.lists(st.lists(few_words.map(" ".join), max_size=2), max_size=5)


@given(st.dictionaries(st.sampled_from(["x", "y"]), examples), st.lists(few_words, max_size=14), st.integers(2, 4))
def test_contamination_against_brute_force(sets, documents, n):
    def grams(text):
        return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)}

    found = Evaluations.of(sets, n)
    hits = [(d, g) for d, text in enumerate(documents) for g in found.found_in(text)]
    counts, table = found.tally(np.array(hits, dtype=np.int64).reshape(-1, 2))
    held_by = {}
    for number, text in enumerate(documents):
        for gram in grams(text):
            held_by.setdefault(gram, set()).add(number)
    telling = {gram for gram, where in held_by.items() if len(where) <= COMMON}
    for name, rows in sets.items():
        each = [set().union(*(grams(words(text)) for text in texts)) for texts in rows]
        assert table[name] == {
            "examples": len(each),
            "too_short": sum(not g for g in each),
            "contaminated": sum(bool(g & telling) for g in each),
        }
    every = set().union(*(grams(words(t)) for rows in sets.values() for texts in rows for t in texts))
    dirty = {d for d, g in hits if counts[g]}
    assert dirty == {d for d, text in enumerate(documents) if grams(text) & telling & every}
