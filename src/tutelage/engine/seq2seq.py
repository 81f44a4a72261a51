"""Encoder-decoders behind the engine's two verbs: the prompt (or context) goes through the encoder once, and the
decoder writes (or scores) the answer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tutelage.core.errors import DataError
from tutelage.engine.cache import make_pair_cache, select_rows
from tutelage.engine.decode import BatchDecoder
from tutelage.engine.requests import Cloze, Score
from tutelage.engine.rows import Request
from tutelage.engine.score import gap_ids, logprobs_at, prepared, scored, start_token
from tutelage.engine.trie_score import LOGITS
from tutelage.model.forward import call, inference_attention, plain_model


def _setting(model: Any, name: str) -> int | None:
    """A token id of the generation config, else of the config."""
    for source in (getattr(model, "generation_config", None), model.config):
        value = getattr(source, name, None)
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return None


def decoder_start(model: Any) -> int:
    """The token that the decoder begins with, as transformers chooses it: decoder_start_token_id, else bos."""
    for name in ("decoder_start_token_id", "bos_token_id"):
        found = _setting(model, name)
        if found is not None:
            return found
    raise DataError("the model's config has neither a decoder_start_token_id nor a bos_token_id; set one of them")


def right_pad(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids [B, T] and their mask [B, T] (int64); absolute positions of an encoder begin at the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()


def pad_token(engine: Any) -> int:
    """The padding id: the tokenizer's, else the config's, else 0 (never attended to)."""
    for source in (engine.tokenizer, engine.model.config):
        found = getattr(source, "pad_token_id", None)
        if found is not None:
            return int(found)
    return 0


def _encode(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The encoder's states [B, T, H]."""
    return plain_model(model).get_encoder()(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state


class Seq2SeqBatch:
    """Prompts after one encoder pass and the decoder's first step (the interface of ``CausalBatch``)."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], steps: int, pad: int, device: torch.device):
        self.model = model
        ids, self.mask = right_pad(prompts, pad, device)
        self.states = _encode(model, ids, self.mask)
        self.cache = make_pair_cache(steps)
        self.logits = self.step(torch.full((len(prompts),), decoder_start(model), device=device))
        forced = _setting(model, "forced_bos_token_id")
        if forced is not None:  # BART begins with bos, multilingual models with the language
            only = torch.full_like(self.logits, float("-inf"))
            only[:, forced] = 0
            self.logits = only

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows (int64 indices)."""
        select_rows(self.cache.self_attention_cache, rows)
        select_rows(self.cache.cross_attention_cache, rows)
        self.mask, self.states = self.mask[rows], self.states[rows]

    def step(self, last_B: Tensor) -> Tensor:
        """Logits [B, V] (float32) after one more decoder token a row."""
        out = call(
            self.model,
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
            attention_mask=self.mask,
            decoder_input_ids=last_B[:, None],
            cache=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1].float()


class Seq2SeqDecoder(BatchDecoder):
    """Decodes one batch; the samples of one prompt share its encoder pass."""

    begin = Seq2SeqBatch

    def row(self, request: Request) -> Request:
        """The decoder's side of a request: a repetition penalty is about the answer, as in transformers."""
        return replace(request, prompt=[decoder_start(self.model)])


SENTINEL = "<extra_id_0>"
"""What stands in a text for the first span that the decoder is to write, in T5's vocabulary."""


def sentinel(tokenizer: Any) -> int | None:
    """The id of T5's first sentinel; None where a tokenizer has none."""
    known = {} if tokenizer is None else tokenizer.get_vocab()
    return known.get(SENTINEL)


class PairEncoder:
    """Token ids of pairs: (the encoder's, those that are scored, those that the decoder is given)."""

    def __init__(self, engine: Any) -> None:
        self.tokenizer, self.mark = engine.tokenizer, sentinel(engine.tokenizer)
        self.ids = functools.cache(self._ids)
        self.whole = functools.cache(engine.encode)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __call__(self, engine: Any, context: Any, continuation: Any) -> tuple[list[int], list[int], list[int]] | str:
        given: list[int] = []
        if isinstance(context, Cloze):
            if self.mark is None:
                return f"the tokenizer has no {SENTINEL}, at which an encoder-decoder of T5's kind fills a gap"
            before, given = context.before.rstrip(" "), [self.mark]
            left = self.whole(before + SENTINEL + context.after)
            gap = Cloze(SENTINEL + context.before[len(before) :])
            right = gap_ids(self.ids, gap, continuation)[1]
        else:
            if isinstance(context, str) and isinstance(continuation, str):  # blanks belong to the token behind them
                bare = context.rstrip(" ")
                context, continuation = bare, context[len(bare) :] + continuation
            left = self.whole(context) if isinstance(context, str) else [int(t) for t in context]
            right = self.ids(continuation) if isinstance(continuation, str) else [int(t) for t in continuation]
        if not left:
            start = start_token(engine.tokenizer)
            if isinstance(start, str):
                return start
            left = [start]
        for name, ids in (("context", left), ("continuation", [*given, *right])):
            if len(ids) > engine.context_length:
                return f"the {name} has {len(ids)} tokens and the model takes {engine.context_length}"
        return left, right, given


def score_answers(engine: Any, pairs: Sequence[tuple[Any, Any]], max_tokens: int) -> list[Score]:
    """Log-probs of each continuation by the decoder, given its context in the encoder; one Score a pair, in order.

    Strings are encoded apart: the context as the tokenizer encodes a text, the continuation without special tokens (to
    score its end too, give ids that include eos); blanks at the context's end count to the continuation.
    ``max_tokens``: padded tokens of one forward, both sides together.

    A Cloze has T5's first sentinel in its gap, and the decoder, given that sentinel, is asked for the filling. All
    fillings of one token are read from one row.
    """

    def found(items: Sequence[Any]) -> list[Score]:
        readers = _rows(items, decoder_start(engine.model))
        # those of one context together, so that it is encoded once
        rows = sorted(readers, key=lambda row: (-len(row[0]), row[0], -len(row[1])))
        parts: list[list[Any]] = [[None] * len(right) for _, right, _ in items]
        vocab = engine.model.get_output_embeddings().weight.shape[0]
        with inference_attention(engine.model):
            for batch in _batches(rows, max_tokens, max(1, LOGITS // vocab)):
                logits = _forward(engine, batch)
                read = [
                    (b * logits.shape[1] + first + k, token, number, k)
                    for b, row in enumerate(batch)
                    for number, first, tokens in readers[row]
                    for k, token in enumerate(tokens)
                ]
                answers = logprobs_at(logits.flatten(0, 1), [at for at, *_ in read], [token for _, token, *_ in read])
                for (_, _, number, k), logprob, best in zip(read, *answers, strict=True):
                    parts[number][k] = (logprob, best)
        asked = sum(len(left) + len(given) + len(right) for left, right, given in items)
        computed = sum(map(len, {left for left, _ in rows})) + sum(len(decoded) for _, decoded in rows)
        engine.counts.add(asked, computed)
        return [_score(part, right) for part, (_, right, _) in zip(parts, items, strict=True)]

    return scored(engine, prepared(engine, pairs, PairEncoder(engine)), found)


def _score(part: Sequence[tuple[float, bool]], tokens: Sequence[int]) -> Score:
    logprobs = tuple(logprob for logprob, _ in part)
    return Score(sum(logprobs), logprobs, all(best for _, best in part), tuple(tokens))


_Row = tuple[tuple[int, ...], tuple[int, ...]]


def _rows(items: Sequence[Any], start: int) -> dict[_Row, list[tuple[int, int, Sequence[int]]]]:
    """(encoder's ids, decoder's ids) -> (item, where its first token is predicted, its tokens)."""
    rows: dict[_Row, list[tuple[int, int, Sequence[int]]]] = {}
    for number, (left, right, given) in enumerate(items):
        row = (tuple(left), (start, *given, *right[:-1]))
        rows.setdefault(row, []).append((number, len(given), right))
    return rows


def _batches(rows: Sequence[_Row], max_tokens: int, max_logits: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    width = 0
    for row in rows:
        wider = max(width, len(row[1]))
        size = len(batch) + 1
        if batch and (size * (len(batch[0][0]) + wider) > max_tokens or size * wider > max_logits):
            yield batch
            batch, wider = [], len(row[1])
        batch.append(row)
        width = wider
    if batch:
        yield batch


def _forward(engine: Any, rows: Sequence[_Row]) -> Tensor:
    """Logits [B, T, V] (float32) behind the decoder's ids; each different context goes through the encoder once."""
    pad, device = pad_token(engine), engine.device
    places: dict[tuple[int, ...], int] = {}
    which = torch.tensor([places.setdefault(left, len(places)) for left, _ in rows], device=device)
    ids, mask = right_pad(list(places), pad, device)
    states = _encode(engine.model, ids, mask)
    given, _ = right_pad([decoded for _, decoded in rows], pad, device)
    return call(
        engine.model,
        encoder_outputs=BaseModelOutput(last_hidden_state=states[which]),
        attention_mask=mask[which],
        decoder_input_ids=given,
        use_cache=False,
    ).logits.float()
