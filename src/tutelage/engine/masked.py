"""Scoring by masked LMs: pseudo-log-likelihood (Salazar et al. 2020, arXiv 1910.14659). They cannot generate."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tutelage.core.errors import DataError
from tutelage.engine.requests import Score
from tutelage.engine.score import batches, prepared, scored, token_logprobs
from tutelage.engine.seq2seq import pad_token, right_pad
from tutelage.engine.trie_score import LOGITS
from tutelage.model.forward import call, inference_attention, plain_model, predicting_at

NO_GENERATION = (
    "a masked LM cannot generate: it predicts single masked tokens from the text on both sides of them, not a "
    "continuation; it can score, and a causal LM or an encoder-decoder generates"
)


def _around(engine: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text ([CLS] and [SEP])."""
    bare = engine.tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = engine.tokenizer("a")["input_ids"]
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return list(whole[:at]), list(whole[at + len(bare) :])
    return [], []


def room(engine: Any) -> int:
    """Most tokens of one sequence, special ones included."""
    embeddings = getattr(plain_model(engine.model).base_model, "embeddings", None)
    # RoBERTa's positions begin after the padding id's
    first = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return engine.context_length - (0 if first is None else first + 1)


def _prepare(
    engine: Any, context: Any, continuation: Any, around: tuple[list[int], list[int]], limit: int
) -> tuple[list[int], list[int], list[int]] | str:
    """Ids of the context, the continuation, and what follows it."""

    def ids(text: Any) -> list[int]:
        if isinstance(text, str):
            return list(engine.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        return [int(t) for t in text]

    if isinstance(context, str) and isinstance(continuation, str):
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        left, whole = ids(context), ids(context + continuation)
        left, right = whole[: len(left)], whole[len(left) :]
    else:
        left, right = ids(context), ids(continuation)
    before = around[0] if isinstance(context, str) else []
    after = around[1] if isinstance(continuation, str) else []
    size = len(before) + len(left) + len(right) + len(after)
    if size > limit:
        return f"context and continuation have {size} tokens with the special ones and the model takes {limit}"
    return [*before, *left], right, after


def score_masked(engine: Any, pairs: Sequence[tuple[Any, Any]], max_tokens: int) -> list[Score]:
    """Pseudo-log-likelihood of each continuation: each of its tokens masked in turn, given all else.

    Strings are encoded as one text, cut where the context's own tokens end, with the tokenizer's special tokens around
    them; a side given as token ids gets no special tokens. ``max_tokens``: padded tokens of one forward. The sum is no
    log-probability (the factors do not make one distribution), so it only compares with others of the same model.
    """
    mask = getattr(engine.tokenizer, "mask_token_id", None)
    if mask is None:
        raise DataError("a masked LM is scored by masking tokens, and the tokenizer has no mask token; set mask_token")
    texts = any(isinstance(side, str) for pair in pairs for side in pair)
    around, limit = _around(engine) if texts else ([], []), room(engine)
    items = prepared(engine, pairs, partial(_prepare, around=around, limit=limit))
    return scored(engine, items, lambda items: _scores(engine, items, int(mask), max_tokens))


def _scores(engine: Any, items: Sequence[Any], mask: int, max_tokens: int) -> list[Score]:
    whole = [[*left, *right, *after] for left, right, after in items]
    tasks = [(n, len(left) + k) for n, (left, right, _) in enumerate(items) for k in range(len(right))]
    found: list[Any] = [None] * len(tasks)
    sizes = [len(whole[n]) for n, _ in tasks]
    order = sorted(range(len(tasks)), key=lambda i: -sizes[i])

    def masked(batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Padded ids, their attention mask, the masked place of each row, and what stood there."""
        ids, attention = right_pad([whole[tasks[i][0]] for i in batch], pad_token(engine), engine.device)
        rows = torch.arange(len(batch), device=engine.device)
        places = torch.tensor([tasks[i][1] for i in batch], device=engine.device)
        targets = ids[rows, places]
        ids[rows, places] = mask
        return ids, attention, places, targets

    with inference_attention(engine.model):
        habits = _habits(engine.model, pad_token(engine), room(engine), *masked(order[-2:])[:3])
        if not habits.narrow:  # the head then gives all positions' logits
            max_tokens = min(max_tokens, max(1, LOGITS // engine.model.get_output_embeddings().weight.shape[0]))
        for batch in batches(sizes, order, max_tokens, habits.even):
            ids, attention, places, targets = masked(batch)
            logits = _logits(engine.model, ids, attention, places, habits.narrow)
            for i, logprob, best in zip(batch, *token_logprobs(logits, targets), strict=True):
                found[i] = (logprob, best)
    scores, at = [], 0
    for _, right, _ in items:
        part = found[at : at + len(right)]
        at += len(right)
        logprobs = tuple(logprob for logprob, _ in part)
        scores.append(Score(sum(logprobs), logprobs, all(best for _, best in part), tuple(right)))
    return scores


@dataclass(frozen=True)
class _Habits:
    """narrow: the head may be given the wanted states alone; even: padding changes a row, so rows of one length go
    together (convolutions look at it)."""

    narrow: bool
    even: bool


def _logits(model: Any, ids_BT: Tensor, mask_BT: Tensor, places_B: Tensor, narrow: bool) -> Tensor:
    """Logits [B, V] (float32) at one place of each row."""
    with predicting_at(model, places_B) if narrow else nullcontext():
        logits = call(model, input_ids=ids_BT, attention_mask=mask_BT).logits
    rows = torch.arange(len(places_B), device=ids_BT.device)
    return (logits.squeeze(1) if narrow else logits[rows, places_B]).float()


def _habits(model: Any, pad: int, limit: int, ids_BT: Tensor, mask_BT: Tensor, places_B: Tensor) -> _Habits:
    """Tried once on each model, with a row or two of its own; `limit`: most tokens of a row."""
    known = model.__dict__
    if "_tutelage_masked" not in known:
        more = min(5, limit - ids_BT.shape[1])
        if more < 1:  # no place to try it
            return _Habits(narrow=False, even=True)
        wider = torch.nn.functional.pad(ids_BT, (0, more), value=pad), torch.nn.functional.pad(mask_BT, (0, more))
        expected = _logits(model, ids_BT, mask_BT, places_B, narrow=False)
        close = 1e-3 if next(model.parameters()).dtype == torch.float32 and not _autocast(ids_BT) else 2e-2

        def same(narrow: bool, other: Tensor) -> bool:
            try:
                found = _logits(model, *wider, places_B, narrow)
            except Exception:  # whatever is raised where that is not possible
                return False
            near = found.shape == other.shape and (found - other).abs().max() <= close * (1 + other.abs().max())
            return bool(near)

        padded = same(False, expected)
        known["_tutelage_masked"] = _Habits(narrow=padded and same(True, expected), even=not padded)
    return known["_tutelage_masked"]  # type: ignore[no-any-return]


def _autocast(ids: Tensor) -> bool:
    return torch.is_autocast_enabled(ids.device.type)
