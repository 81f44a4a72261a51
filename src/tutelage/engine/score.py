"""Log-probabilities of continuations: through a trie, or by padded batches where a model cannot (support.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from tutelage.core.errors import DataError, in_words
from tutelage.engine.requests import NOT_A_NUMBER, Cloze, Score
from tutelage.engine.trie_score import alternatives, score_tokens
from tutelage.model.forward import call, evaluating, inference_attention, position_ids, vocabulary


def _split(engine: Any, context: Any, continuation: Any) -> tuple[list[int], list[int]]:
    """Token ids of both sides; strings are encoded as one text and cut where the context's own tokens end."""
    if isinstance(context, Cloze):
        raise DataError("a causal LM does not see what stands behind a gap; a masked LM or an encoder-decoder does")
    if isinstance(context, str) and isinstance(continuation, str):
        # trailing blanks of the context belong to the continuation's first token
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        left = engine.encode(context) if context else []
        whole = engine.encode(context + continuation)
        return whole[: len(left)], whole[len(left) :]
    left = engine.encode(context) if context else []
    right = (
        list(engine.tokenizer(continuation, add_special_tokens=False)["input_ids"])
        if isinstance(continuation, str)
        else [int(t) for t in continuation]
    )
    return left, right


def start_token(tokenizer: Any) -> int | str:
    """What an empty context begins with: the bos token, else eos; a message if there is neither."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return "the context is empty and the tokenizer has neither a bos nor an eos token"


def _prepare(engine: Any, context: Any, continuation: Any) -> tuple[list[int], list[int]] | str:
    left, right = _split(engine, context, continuation)
    if len(continuation) and not right:  # an empty sum would call it certain
        return "the continuation has no token of its own behind the context; give token ids on either side"
    if not left and right:
        start = start_token(engine.tokenizer)
        if isinstance(start, str):
            return start
        # some tokenizers put the bos token in front of every text themselves
        left, right = ([start], right[1:]) if right[0] == start and len(right) > 1 else ([start], right)
    size = len(left) + len(right) - 1
    if size > engine.context_length:
        return f"context and continuation have {size + 1} tokens and the model's context is {engine.context_length}"
    return left, right


def batches(sizes: Sequence[int], order: Sequence[int], max_tokens: int, even: bool = False) -> Iterator[list[int]]:
    """Cut ``order`` (largest first) into batches of at most ``max_tokens`` padded tokens; even: of one size each."""
    batch: list[int] = []
    for i in order:
        uneven = even and bool(batch) and sizes[i] != sizes[batch[0]]
        if batch and (uneven or (len(batch) + 1) * sizes[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[list[Any], list[Any]]:
    """For float32 logits [..., V] and targets [...]: log-probs, and whether the target is the first choice."""
    logprobs = logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)
    return logprobs.tolist(), (logits.argmax(-1) == targets).tolist()


def logprobs_at(logits_NV: torch.Tensor, at: Sequence[int], targets: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """As `token_logprobs`, of targets that are read at some rows (`at`) of float32 logits, many of them at one row."""
    rows, tokens = (torch.tensor(list(some), device=logits_NV.device) for some in (at, targets))
    logprobs = logits_NV[rows, tokens] - logits_NV.logsumexp(-1)[rows]
    return logprobs.tolist(), (logits_NV.argmax(-1)[rows] == tokens).tolist()


def gap_ids(ids: Callable[[str], list[int]], cloze: Cloze, filling: str) -> tuple[str, list[int]]:
    """The text before the gap without the blanks at its end, which are the filling's, and the filling's own tokens.

    One word before it is encoded with it: what precedes a word decides how it is cut. ``ids``: encodes without special
    tokens. Raises DataError for a filling that has no tokens of its own there.
    """
    before = cloze.before.rstrip(" ")
    anchor = before.rpartition(" ")[2]
    left, whole = ids(anchor), ids(anchor + cloze.before[len(before) :] + filling)
    if whole[: len(left)] != left or len(whole) == len(left):
        raise DataError(f"{filling!r} has no token of its own behind {anchor!r}; put a blank between them")
    return before, whole[len(left) :]


def score_pairs(engine: Any, pairs: Sequence[tuple[Any, Any]], max_tokens: int, top: int = 0) -> list[Score]:
    """One Score a pair, in order; see ``LocalEngine.score``."""

    def found(items: Sequence[Any]) -> list[Score]:
        if engine.support.plans:
            return score_tokens(engine.model, items, max_tokens, engine.counts, top)
        engine.counts.add(*[sum(len(left) + len(right) - 1 for left, right in items)] * 2)
        return _padded(engine, items, max_tokens, top)

    return scored(engine, prepared(engine, pairs, _prepare), found)


def prepared(engine: Any, pairs: Sequence[tuple[Any, Any]], prepare: Callable[..., Any]) -> list[Any]:
    """``prepare(engine, context, continuation)`` of each pair: lists of token ids, or why the pair cannot be scored."""
    vocab = vocabulary(engine.model)
    out: list[Any] = []
    for pair in pairs:
        try:
            made = prepare(engine, *pair)
        except Exception as problem:  # a tokenizer raises whatever it likes; it is about this pair alone
            made = in_words(problem)
        if not isinstance(made, str) and any(not 0 <= token < vocab for side in made for token in side):
            made = f"context or continuation has token ids outside 0..{vocab - 1}"
        out.append(made)
    return out


def scored(engine: Any, items: Sequence[Any], score: Callable[[Sequence[Any]], list[Score]]) -> list[Score]:
    """One Score for each prepared pair, in order.

    items: (context ids, continuation ids, ...), or a message why it cannot be scored; score: what scores those
    whose continuation is not empty.
    """
    scores: list[Score] = [
        Score(float("nan"), error=item) if isinstance(item, str) else Score(0.0, (), True, ()) for item in items
    ]
    wanted = [i for i, item in enumerate(items) if not isinstance(item, str) and item[1]]
    if not wanted:
        return scores
    with torch.inference_mode(), evaluating(engine.model), engine.autocast():
        found = score([items[i] for i in wanted])
    for i, one in zip(wanted, found, strict=True):
        scores[i] = replace(one, error=NOT_A_NUMBER) if math.isnan(one.logprob) else one
    return scores


def _padded(engine: Any, items: Sequence[Any], max_tokens: int, top: int = 0) -> list[Score]:
    """Full forwards of padded batches, pairs of like length together."""
    sizes = [len(left) + len(right) - 1 for left, right in items]
    out: list[Any] = [None] * len(items)
    with engine.lock, inference_attention(engine.model):
        for batch in batches(sizes, sorted(range(len(items)), key=lambda i: -sizes[i]), max_tokens):
            for i, score in zip(batch, _forward(engine, [items[i] for i in batch], top), strict=True):
                out[i] = score
    return out


def _forward(engine: Any, items: Sequence[Any], top: int = 0) -> list[Score]:
    device = engine.device
    width = max(len(left) + len(right) - 1 for left, right in items)
    ids = torch.zeros(len(items), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    targets = torch.zeros_like(ids)
    for row, (left, right) in enumerate(items):
        whole = torch.tensor([*left, *right])
        ids[row, : len(whole) - 1] = whole[:-1]
        targets[row, : len(whole) - 1] = whole[1:]
        mask[row, : len(whole) - 1] = 1
    ids, mask, targets = ids.to(device), mask.to(device), targets.to(device)
    # only the positions that are scored by some row get logits
    first = min(len(left) for left, _ in items) - 1
    out = call(
        engine.model,
        input_ids=ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        use_cache=False,
        logits_to_keep=width - first,
    )
    logits = out.logits[:, -(width - first) :].float()
    targets = targets[:, first:]
    logprobs, greedy = token_logprobs(logits, targets)
    scores = []
    for row, (left, right) in enumerate(items):
        start = len(left) - 1 - first
        part = logprobs[row][start : start + len(right)]
        best = alternatives(logits[row, start : start + len(right)], top) if top else ()
        first_choice = all(greedy[row][start : start + len(right)])
        scores.append(Score(sum(part), tuple(part), first_choice, tuple(right), None, tuple(best)))
    return scores
