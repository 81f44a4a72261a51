"""What the pretraining objectives do to a sequence of token ids: pure functions of (ids, generator).

Masked LM: BERT's 80/10/10 (Devlin et al. 2019, section 3.1), drawn anew at every visit (RoBERTa's dynamic masking).
Span corruption and prefix LM: T5 (Raffel et al. 2020, sections 3.1.4 and 3.2.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Ids = np.ndarray
IGNORED = -100


def mask_tokens(
    ids: Ids, rng: np.random.Generator, *, mask_id: int, ordinary: Ids, rate: float = 0.15
) -> tuple[Ids, Ids]:
    """(input, labels), int64 like `ids`, of a masked LM.

    Exactly round(`rate` x ordinary tokens) of them, at least one, are predicted: 80% of these become the mask token,
    10% another token drawn from `ordinary` and 10% stay (each by itself, so the shares hold on average). `ordinary`:
    the ids that are no special tokens, ascending; others are never chosen. Labels are -100 elsewhere.
    """
    places = np.flatnonzero(np.isin(ids, ordinary))
    inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
    if not len(places):
        return inputs, labels
    chosen = rng.permutation(places)[: max(1, _nearest(rate * len(places)))]
    labels[chosen] = ids[chosen]
    draw = rng.random(len(chosen))
    inputs[chosen[draw < 0.8]] = mask_id
    others = chosen[draw >= 0.9]
    inputs[others] = ordinary[rng.integers(len(ordinary), size=len(others))]
    return inputs, labels


def _nearest(x: float) -> int:
    return int(np.floor(x + 0.5))


def span_counts(length: int, rate: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """(corrupted tokens, spans) of a sequence of `length` tokens (at least 2), as T5 rounds them."""
    noise = min(max(int(np.round(length * rate)), 1), length - 1)
    spans = max(int(np.round(noise / mean)), 1)
    return noise, min(spans, noise, length - noise)


def span_lengths(length: int, rate: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """(input, target) lengths that `corrupt_spans` makes of `length` tokens, the closing eos of each counted."""
    noise, spans = span_counts(length, rate, mean)
    return length - noise + spans + 1, noise + spans + 1


def raw_length(inputs: int, rate: float = 0.15, mean: float = 3.0) -> int:
    """Most tokens of text whose corrupted input is at most `inputs` long: so that no place is padded."""
    length = max(2, inputs - 2)
    while span_lengths(length + 1, rate, mean)[0] <= inputs:
        length += 1
    return length


def _parts(total: int, number: int, rng: np.random.Generator) -> Ids:
    """`number` positive lengths that sum to `total`, every such division equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: number - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt_spans(
    ids: Ids, rng: np.random.Generator, *, sentinels: Sequence[int], eos: int, rate: float = 0.15, mean: float = 3.0
) -> tuple[Ids, Ids]:
    """(encoder input, decoder target): the k-th corrupted span is the k-th sentinel in the input, and in the target
    that sentinel followed by the span; both end with eos. The text begins with a span that is kept and ends with one
    that is not, as in T5's code. ValueError for fewer than 2 tokens or too few sentinels."""
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens, expected at least 2: one to keep and one to predict")
    noise, spans = span_counts(len(ids), rate, mean)
    if spans > len(sentinels):
        raise ValueError(f"{spans} spans, but {len(sentinels)} sentinels")
    ends = np.cumsum(np.stack([_parts(len(ids) - noise, spans, rng), _parts(noise, spans, rng)], 1).ravel())
    pieces = np.split(ids, ends[:-1])
    marks = [np.array([s], dtype=ids.dtype) for s in sentinels[:spans]]
    end = np.array([eos], dtype=ids.dtype)
    inputs = np.concatenate([x for pair in zip(pieces[0::2], marks, strict=True) for x in pair] + [end])
    target = np.concatenate([x for pair in zip(marks, pieces[1::2], strict=True) for x in pair] + [end])
    return inputs, target


def restore_spans(inputs: Ids, target: Ids, sentinels: Sequence[int]) -> Ids:
    """The text of which `corrupt_spans` made `inputs` and `target`: each sentinel replaced by its span."""
    known = set(sentinels)
    spans: dict[int, list[int]] = {}
    at = -1
    for token in target[:-1].tolist():
        if token in known:
            at = token
            spans[at] = []
        else:
            spans[at].append(token)
    out: list[int] = []
    for token in inputs[:-1].tolist():
        out += spans.get(token, [token])
    return np.array(out, dtype=inputs.dtype)


def split_prefix(ids: Ids, rng: np.random.Generator, *, eos: int) -> tuple[Ids, Ids]:
    """(encoder input, decoder target) of prefix LM: the text cut at a place drawn evenly, at least one token on each
    side, both closed by eos. ValueError for fewer than 2 tokens."""
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens, expected at least 2: one to read and one to predict")
    cut = int(rng.integers(1, len(ids)))
    end = np.array([eos], dtype=ids.dtype)
    return np.concatenate([ids[:cut], end]), np.concatenate([ids[cut:], end])


def next_segments(document: Ids, other: Ids, rng: np.random.Generator, room: int) -> tuple[Ids, Ids, bool]:
    """(A, B, whether B follows A) of BERT's next-sentence task, at most `room` tokens together, none empty.

    A "sentence" is any run of tokens, as in the paper. B is in half of the cases what follows A in its document, else
    a run of another one. ValueError for a document under 2 tokens, an empty other one or a room under 2.
    """
    if len(document) < 2 or not len(other) or room < 2:
        raise ValueError(f"documents of {len(document)} and {len(other)} tokens, room {room}: expected 2, 1 and 2")
    follows = bool(rng.random() < 0.5)
    size = min(len(document), room)
    start = int(rng.integers(len(document) - size + 1))
    cut = start + int(rng.integers(1, size))
    first, second = document[start:cut], document[cut : start + size]
    if not follows:
        size = min(len(other), room - len(first))
        start = int(rng.integers(len(other) - size + 1))
        second = other[start : start + size]
    return first, second, follows
