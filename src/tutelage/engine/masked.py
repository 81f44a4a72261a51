"""Scoring by masked LMs: pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659). They cannot generate."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.engine.requests import Cloze, Score
from tutelage.engine.score import batches, gap_ids, logprobs_at, prepared, scored
from tutelage.engine.seq2seq import pad_token, right_pad
from tutelage.engine.trie_score import LOGITS
from tutelage.model.forward import call, inference_attention, plain_model, predicting_at

NO_GENERATION = (
    "a masked LM cannot generate: it predicts single masked tokens from the text on both sides of them, not a "
    "continuation; it can score, and a causal LM or an encoder-decoder generates"
)


def room(engine: Any) -> int:
    """Most tokens of one sequence, special ones included."""
    embeddings = getattr(plain_model(engine.model).base_model, "embeddings", None)
    # RoBERTa's positions begin after the padding id's
    first = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return engine.context_length - (0 if first is None else first + 1)


class _Together(NamedTuple):
    """A gap filled: all its tokens are masked at once."""

    left: list[int]
    right: list[int]
    after: list[int]


class PairEncoder:
    """Token ids of pairs: (before, continuation's, behind), as `_Together` where they fill a gap.

    DataError for a tokenizer without a mask token.
    """

    def __init__(self, engine: Any) -> None:
        self.tokenizer, self.limit = engine.tokenizer, room(engine)
        mask = getattr(engine.tokenizer, "mask_token_id", None)
        if mask is None:
            raise DataError("a masked LM reads at masks, and the tokenizer has no mask token; set mask_token")
        self.mask = int(mask)
        self.ids = functools.cache(self._ids)
        self.whole = functools.cache(lambda text: list(engine.tokenizer(text)["input_ids"]))

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before and after a text ([CLS] and [SEP])."""
        bare, whole = self._ids("a"), self.whole("a")
        for at in range(len(whole) - len(bare) + 1):
            if whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def __call__(self, engine: Any, context: Any, continuation: Any) -> Any:
        made = self._gap(context, continuation) if isinstance(context, Cloze) else self._pair(context, continuation)
        size = sum(len(part) for part in made)
        if size > self.limit:
            return f"context and continuation have {size} tokens with the special ones and the model takes {self.limit}"
        return made

    def _pair(self, context: Any, continuation: Any) -> tuple[list[int], list[int], list[int]]:
        if isinstance(context, str) and isinstance(continuation, str):
            blanks = len(context) - len(context.rstrip())
            if blanks:
                context, continuation = context[:-blanks], context[-blanks:] + continuation
            left, whole = self.ids(context), self._ids(context + continuation)
            left, right = whole[: len(left)], whole[len(left) :]
        else:
            left, right = (self.ids(s) if isinstance(s, str) else [int(t) for t in s] for s in (context, continuation))
        before = self._around[0] if isinstance(context, str) else []
        after = self._around[1] if isinstance(continuation, str) else []
        return [*before, *left], right, after

    def _gap(self, cloze: Cloze, filling: str) -> _Together:
        before, right = gap_ids(self.ids, cloze, filling)
        token = self.tokenizer.mask_token
        whole = self.whole(before + token * len(right) + cloze.after)
        masks = [place for place, found in enumerate(whole) if found == self.mask]
        start = masks[before.count(token)]  # the text may hold masks of its own
        return _Together(whole[:start], right, whole[start + len(right) :])


def score_masked(engine: Any, pairs: Sequence[tuple[Any, Any]], max_tokens: int) -> list[Score]:
    """Pseudo-log-likelihood of each continuation: each of its tokens masked in turn, given all else.

    Strings are encoded as one text, cut where the context's own tokens end, with the tokenizer's special tokens around
    them; a side given as token ids gets no special tokens. ``max_tokens``: padded tokens of one forward. The sum is no
    log-probability (the factors do not make one distribution), so it only compares with others of the same model.

    What fills a Cloze is masked whole, a mask a token, and its score is the sum of the tokens' log-probs at their masks
    (as PET trains with several masks: Schick and Schuetze 2021, arXiv 2009.07118): one forward for all fillings of one
    length.
    """
    encode = PairEncoder(engine)
    items = prepared(engine, pairs, encode)
    return scored(engine, items, lambda items: _scores(engine, items, encode.mask, max_tokens))


_Row = tuple[tuple[int, ...], tuple[int, ...]]
_Readers = dict[_Row, list[tuple[int, int, Sequence[int]]]]
"""(ids, masked places) -> (item, number of its token that stands at the first of them, its tokens there)."""


def _rows(items: Sequence[Any], mask: int) -> _Readers:
    """The different rows that the items need."""
    rows: _Readers = {}
    for number, item in enumerate(items):
        left, right, after = item
        places = tuple(range(len(left), len(left) + len(right)))
        if isinstance(item, _Together):
            rows.setdefault(((*left, *[mask] * len(right), *after), places), []).append((number, 0, right))
            continue
        whole = (*left, *right, *after)
        for k, place in enumerate(places):
            rows.setdefault((whole, (place,)), []).append((number, k, right[k : k + 1]))
    return rows


def _scores(engine: Any, items: Sequence[Any], mask: int, max_tokens: int) -> list[Score]:
    readers = _rows(items, mask)
    rows = list(readers)
    sizes = [len(ids) for ids, _ in rows]
    order = sorted(range(len(rows)), key=lambda i: -sizes[i])
    engine.counts.add(sum(size * len(readers[row]) for size, row in zip(sizes, rows)), sum(sizes))
    found: list[list[Any]] = [[None] * len(right) for _, right, _ in items]

    def masked(batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Padded ids [B, T], their attention mask, and the masked places (bool)."""
        ids, attention = right_pad([rows[i][0] for i in batch], pad_token(engine), engine.device)
        chosen = torch.zeros_like(ids, dtype=torch.bool)
        for b, i in enumerate(batch):
            chosen[b, list(rows[i][1])] = True
        return ids.masked_fill(chosen, mask), attention, chosen

    with inference_attention(engine.model):
        habits = _habits(engine.model, pad_token(engine), room(engine), *masked(order[-2:]))
        if not habits.narrow:  # the head then gives all positions' logits
            max_tokens = min(max_tokens, max(1, LOGITS // engine.model.get_output_embeddings().weight.shape[0]))
        for batch in batches(sizes, order, max_tokens, habits.even):
            logits = _logits(engine.model, *masked(batch), habits.narrow)
            starts = itertools.accumulate((len(rows[i][1]) for i in batch), initial=0)
            read = [
                (start + k, token, number, first + k)
                for i, start in zip(batch, starts)
                for number, first, tokens in readers[rows[i]]
                for k, token in enumerate(tokens)
            ]
            answers = logprobs_at(logits, [at for at, *_ in read], [token for _, token, *_ in read])
            for (_, _, number, k), logprob, best in zip(read, *answers, strict=True):
                found[number][k] = (logprob, best)
    scores = []
    for (_, right, _), part in zip(items, found, strict=True):
        logprobs = tuple(logprob for logprob, _ in part)
        scores.append(Score(sum(logprobs), logprobs, all(best for _, best in part), tuple(right)))
    return scores


@dataclass(frozen=True)
class _Habits:
    """narrow: the head may be given the wanted states alone; even: padding changes a row, so rows of one length go
    together (convolutions look at it)."""

    narrow: bool
    even: bool


def _logits(model: Any, ids_BT: Tensor, mask_BT: Tensor, chosen_BT: Tensor, narrow: bool) -> Tensor:
    """Logits [N, V] (float32) at the N places that are chosen, row by row."""
    with predicting_at(model, chosen_BT) if narrow else nullcontext():
        logits = call(model, input_ids=ids_BT, attention_mask=mask_BT).logits
    return (logits.squeeze(0) if narrow else logits[chosen_BT]).float()


def _habits(model: Any, pad: int, limit: int, ids_BT: Tensor, mask_BT: Tensor, chosen_BT: Tensor) -> _Habits:
    """Tried once on each model, with a row or two of its own; `limit`: most tokens of a row."""
    known = model.__dict__
    if "_tutelage_masked" not in known:
        more = min(5, limit - ids_BT.shape[1])
        if more < 1:  # no place to try it
            return _Habits(narrow=False, even=True)
        padding = torch.nn.functional.pad
        wider = padding(ids_BT, (0, more), value=pad), padding(mask_BT, (0, more)), padding(chosen_BT, (0, more))
        expected = _logits(model, ids_BT, mask_BT, chosen_BT, narrow=False)
        close = 1e-3 if next(model.parameters()).dtype == torch.float32 and not _autocast(ids_BT) else 2e-2

        def same(narrow: bool, other: Tensor) -> bool:
            try:
                found = _logits(model, *wider, narrow)
            except Exception:  # whatever is raised where that is not possible
                return False
            near = found.shape == other.shape and (found - other).abs().max() <= close * (1 + other.abs().max())
            return bool(near)

        padded = same(False, expected)
        known["_tutelage_masked"] = _Habits(narrow=padded and same(True, expected), even=not padded)
    return known["_tutelage_masked"]  # type: ignore[no-any-return]


def _autocast(ids: Tensor) -> bool:
    return torch.is_autocast_enabled(ids.device.type)
