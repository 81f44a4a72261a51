"""What the pretraining objectives do to token ids: lossless, with exact rates, the same for the same generator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.text.corrupt import (
    IGNORED,
    corrupt_spans,
    mask_tokens,
    next_segments,
    raw_length,
    restore_spans,
    span_counts,
    span_lengths,
    split_prefix,
)

SENTINELS = list(range(200, 300))
ORDINARY = np.arange(10, 200)
EOS = 1
texts = st.lists(st.integers(10, 199), min_size=2, max_size=400).map(lambda ids: np.array(ids, dtype=np.int64))
seeds = st.integers(0, 2**32)
rates = st.floats(0.05, 0.5)
means = st.floats(1.0, 6.0)


def spans(ids, seed, rate=0.15, mean=3.0):
    return corrupt_spans(ids, np.random.default_rng(seed), sentinels=SENTINELS * 3, eos=EOS, rate=rate, mean=mean)


@given(texts, seeds, rates, st.floats(2.0, 6.0))
def test_spans_lose_nothing_and_have_the_exact_rate(ids, seed, rate, mean):
    if span_counts(len(ids), rate, mean)[1] > len(SENTINELS):
        return
    inputs, target = spans(ids, seed, rate, mean)
    noise, number = span_counts(len(ids), rate, mean)
    assert noise == min(max(round(len(ids) * rate), 1), len(ids) - 1)
    assert (len(inputs), len(target)) == span_lengths(len(ids), rate, mean)
    assert np.isin(target, SENTINELS).sum() == np.isin(inputs, SENTINELS).sum() == number
    assert np.array_equal(restore_spans(inputs, target, SENTINELS), ids)
    again = spans(ids, seed, rate, mean)
    assert np.array_equal(again[0], inputs) and np.array_equal(again[1], target)


def reference(ids, noise_mask):
    """T5's noise_span_to_unique_sentinel of the text and of its complement, token by token."""

    def sentinels_for(mask):
        out, number, inside = [], -1, False
        for token, noisy in zip(ids.tolist(), mask.tolist()):
            if noisy and not inside:
                number += 1
                out.append(SENTINELS[number])
            if not noisy:
                out.append(token)
            inside = noisy
        return [*out, EOS]

    return sentinels_for(noise_mask), sentinels_for(~noise_mask)


@given(texts, seeds)
def test_spans_are_those_of_t5s_code(ids, seed):
    inputs, target = spans(ids, seed)
    mask, at = [], 0
    lengths = {}
    for token in target[:-1].tolist():
        if token in SENTINELS:
            at = token
            lengths[at] = 0
        else:
            lengths[at] += 1
    for token in inputs[:-1].tolist():
        mask += [True] * lengths[token] if token in lengths else [False]
    mask = np.array(mask)
    assert mask.sum() == span_counts(len(ids))[0] and not mask[0] and mask[-1]
    expected = reference(ids, mask)
    assert inputs.tolist() == expected[0] and target.tolist() == expected[1]


def test_every_division_into_spans_comes_equally_often():
    counts = {}
    for seed in range(4000):
        inputs, _ = spans(np.arange(10, 20), seed, 0.4, 2.0)  # 4 noise tokens in 2 spans: 5 x 3 divisions
        key = tuple(inputs.tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 15 and all(abs(n - 4000 / 15) < 5 * (4000 / 15) ** 0.5 for n in counts.values())


def test_t5s_own_lengths():
    """Rows of 512: 568 tokens of text, targets of 114 (the values of T5's code)."""
    assert raw_length(512) == 568 and span_lengths(568) == (512, 114)


@given(st.integers(8, 2000), rates, means)
def test_the_longest_text_that_fits(inputs, rate, mean):
    length = raw_length(inputs, rate, mean)
    assert span_lengths(length, rate, mean)[0] <= inputs < span_lengths(length + 1, rate, mean)[0]


@given(texts, seeds)
def test_prefix_loses_nothing(ids, seed):
    inputs, target = split_prefix(ids, np.random.default_rng(seed), eos=EOS)
    assert len(inputs) > 1 and len(target) > 1 and inputs[-1] == target[-1] == EOS
    assert np.array_equal(np.concatenate([inputs[:-1], target[:-1]]), ids)


@given(texts, seeds, st.floats(0.05, 0.9), st.integers(0, 5))
def test_masking_has_the_exact_rate_and_touches_no_special_token(ids, seed, rate, specials):
    whole = np.concatenate([np.arange(specials), ids, [EOS]])
    inputs, labels = mask_tokens(whole, np.random.default_rng(seed), mask_id=5, ordinary=ORDINARY, rate=rate)
    chosen = labels != IGNORED
    assert chosen.sum() == max(1, int(np.floor(rate * len(ids) + 0.5)))
    assert np.array_equal(labels[chosen], whole[chosen]) and np.array_equal(inputs[~chosen], whole[~chosen])
    assert np.isin(whole[chosen], ORDINARY).all()
    assert np.isin(inputs[chosen], [5, *ORDINARY]).all()
    # lossless: the labels give back what was hidden
    assert np.array_equal(np.where(chosen, labels, inputs), whole)


@settings(max_examples=10)
@given(seeds)
def test_80_10_10(seed):
    ids = np.random.default_rng(seed).integers(10, 200, 100_000)
    inputs, labels = mask_tokens(ids, np.random.default_rng(seed + 1), mask_id=5, ordinary=ORDINARY)
    chosen = labels != IGNORED
    n = chosen.sum()
    assert n == 15_000
    masked, kept = (inputs[chosen] == 5).mean(), (inputs[chosen] == labels[chosen]).mean()
    same = 0.1 / len(ORDINARY)  # a random token may be the right one
    for share, expected in ((masked, 0.8), (kept, 0.1 + same), (1 - masked - kept, 0.1 - same)):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


def test_nothing_ordinary_gives_nothing_to_predict():
    inputs, labels = mask_tokens(np.array([0, 1]), np.random.default_rng(0), mask_id=5, ordinary=ORDINARY)
    assert inputs.tolist() == [0, 1] and (labels == IGNORED).all()


@given(texts, texts, seeds, st.integers(2, 100))
def test_segments(document, other, seed, room):
    first, second, follows = next_segments(document, other, np.random.default_rng(seed), room)
    assert len(first) and len(second) and len(first) + len(second) <= room
    text = (np.concatenate([first, second]), document) if follows else (second, other)
    pieces = ["," + ",".join(map(str, ids.tolist())) + "," for ids in text]
    assert pieces[0] in pieces[1]
    assert follows or "," + ",".join(map(str, first.tolist())) + "," in "," + ",".join(map(str, document)) + ","


def test_half_of_the_segments_follow():
    document, other = np.arange(50), np.arange(100, 150)
    found = [next_segments(document, other, np.random.default_rng(seed), 20)[2] for seed in range(2000)]
    assert abs(sum(found) - 1000) < 5 * 500**0.5


@pytest.mark.parametrize("call", [
    lambda rng: split_prefix(np.array([3]), rng, eos=1),
    lambda rng: corrupt_spans(np.array([3]), rng, sentinels=SENTINELS, eos=1),
    lambda rng: corrupt_spans(np.arange(100), rng, sentinels=SENTINELS[:1], eos=1),
    lambda rng: next_segments(np.array([3]), np.array([4]), rng, 9),
])  # fmt: skip
def test_too_little_is_refused(call):
    with pytest.raises(ValueError):
        call(np.random.default_rng(0))
