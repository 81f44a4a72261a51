"""Encoder-decoders behind the engine's two verbs: the prompt (or context) goes through the encoder once, and the
decoder writes (or scores) the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tutelage.core.errors import DataError
from tutelage.engine.cache import make_pair_cache, select_rows
from tutelage.engine.decode import BatchDecoder
from tutelage.engine.requests import Score
from tutelage.engine.rows import Request
from tutelage.engine.score import prepared, scored, start_token, token_logprobs
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


def _prepare(engine: Any, context: Any, continuation: Any) -> tuple[list[int], list[int]] | str:
    left = engine.encode(context) if isinstance(context, str) or len(context) else []
    right = (
        list(engine.tokenizer(continuation, add_special_tokens=False)["input_ids"])
        if isinstance(continuation, str)
        else [int(t) for t in continuation]
    )
    if not left:
        start = start_token(engine.tokenizer)
        if isinstance(start, str):
            return start
        left = [start]
    for name, ids in (("context", left), ("continuation", right)):
        if len(ids) > engine.context_length:
            return f"the {name} has {len(ids)} tokens and the model takes {engine.context_length}"
    return left, right


def score_answers(engine: Any, pairs: Sequence[tuple[Any, Any]], max_tokens: int) -> list[Score]:
    """Log-probs of each continuation by the decoder, given its context in the encoder; one Score a pair, in order.

    Strings are encoded apart: the context as the tokenizer encodes a text, the continuation without special tokens (to
    score its end too, give ids that include eos). ``max_tokens``: padded tokens of one forward, both sides together.
    """

    def found(items: Sequence[Any]) -> list[Score]:
        out: list[Any] = [None] * len(items)
        # those of one context together, so that it is encoded once
        order = sorted(range(len(items)), key=lambda i: (-len(items[i][0]), items[i][0], -len(items[i][1])))
        vocab = engine.model.get_output_embeddings().weight.shape[0]
        with inference_attention(engine.model):
            for batch in _batches(items, order, max_tokens, max(1, LOGITS // vocab)):
                for i, score in zip(batch, _forward(engine, [items[i] for i in batch]), strict=True):
                    out[i] = score
        return out

    return scored(engine, prepared(engine, pairs, _prepare), found)


def _batches(items: Sequence[Any], order: Sequence[int], max_tokens: int, max_logits: int) -> Iterator[list[int]]:
    batch: list[int] = []
    width = 0
    for i in order:
        wider = max(width, len(items[i][1]))
        size = len(batch) + 1
        if batch and (size * (len(items[batch[0]][0]) + wider) > max_tokens or size * wider > max_logits):
            yield batch
            batch, wider = [], len(items[i][1])
        batch.append(i)
        width = wider
    if batch:
        yield batch


def _forward(engine: Any, items: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
    pad, start, device = pad_token(engine), decoder_start(engine.model), engine.device
    places: dict[tuple[int, ...], int] = {}
    rows = torch.tensor([places.setdefault(tuple(left), len(places)) for left, _ in items], device=device)
    ids, mask = right_pad(list(places), pad, device)
    states = _encode(engine.model, ids, mask)
    targets, _ = right_pad([right for _, right in items], pad, device)
    given = torch.cat([targets.new_full((len(items), 1), start), targets[:, :-1]], dim=1)
    logits = call(
        engine.model,
        encoder_outputs=BaseModelOutput(last_hidden_state=states[rows]),
        attention_mask=mask[rows],
        decoder_input_ids=given,
        use_cache=False,
    ).logits.float()
    scores = []
    for (_, right), logprobs, best in zip(items, *token_logprobs(logits, targets), strict=True):
        part = logprobs[: len(right)]
        scores.append(Score(sum(part), tuple(part), all(best[: len(right)]), tuple(right)))
    return scores
