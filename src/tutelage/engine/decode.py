"""The static-batch decoding loop: prefill once, then one token a step for the rows that still live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.engine.cache import make_cache, select_rows
from tutelage.engine.requests import SamplingParams
from tutelage.engine.sampling import RowParams, sample
from tutelage.model.forward import call, position_ids

RUNNING, LENGTH, EOS, STOP = 0, 1, 2, 3
REASONS = ("length", "length", "eos", "stop")


@dataclass
class Request:
    """One row of a batch: prompt ids, parameters, and the seed of this very sample."""

    prompt: Sequence[int]
    params: SamplingParams
    seed: int


@dataclass
class Finished:
    """A row's result: tokens (the ending one included), their log-probs, the reason, alternatives if asked."""

    tokens: list[int]
    logprobs: list[float]
    reason: str
    top: list[dict[int, float]] | None = None


@contextmanager
def inference_attention(model: Any) -> Iterator[None]:
    """Within: sdpa attention if the model runs eager (quicker without gradients), evaluation mode; then as before."""
    config = model.config
    before, training = config._attn_implementation, model.training
    swap = before == "eager" and getattr(model, "_supports_sdpa", False)
    if training:
        model.eval()
    if swap:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        if swap:
            config._attn_implementation = before
        if training:
            model.train()


def left_pad(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded ids [B, T] and their mask [B, T] (int64)."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return ids, mask


class BatchDecoder:
    """Decodes one batch of requests; ``samples[i]`` rows share the prefill of ``prompts[i]``."""

    def __init__(
        self,
        model: Any,
        pad: int,
        eos: Sequence[int],
        stop_check: Callable[[Request, list[int]], bool],
    ) -> None:
        self.model = model
        self.pad = pad
        self.eos = list(eos)
        self.stop_check = stop_check
        self.device = next(model.parameters()).device

    def run(
        self, groups: Sequence[Sequence[Request]], on_token: Callable[[int, int], None] | None = None
    ) -> list[Finished]:
        """Decode groups of requests that share a prompt; results in the order of the flattened groups.

        ``on_token(row, token)`` is called for every token if given (rows in the flattened order).
        """
        rows = [request for group in groups for request in group]
        ids, mask = left_pad([group[0].prompt for group in groups], self.pad, self.device)
        steps = max(request.params.max_tokens for request in rows)
        state = _State(self, rows, steps)
        if steps == 0:
            return state.results()
        cache = make_cache(self.model.config, ids.shape[1] + steps)
        logits = self._forward(ids, mask, position_ids(mask), cache)
        position = mask.sum(-1, keepdim=True)
        if len(rows) != len(groups):
            repeat = torch.tensor([i for i, g in enumerate(groups) for _ in g], device=self.device)
            select_rows(cache, repeat)
            logits, mask, position, ids = logits[repeat], mask[repeat], position[repeat], ids[repeat]
        state.start(logits.shape[-1], ids, mask)
        for step in range(steps):
            tokens = state.step(step, logits)
            if on_token is not None:
                for row, token in zip(state.alive.tolist(), tokens.tolist(), strict=True):
                    on_token(row, token)
            if step + 1 == steps or state.running == 0:
                break
            keep = state.shrink()
            if keep is not None:
                select_rows(cache, keep)
                tokens, mask, position = tokens[keep], mask[keep], position[keep]
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, position, cache)
            position = position + 1
        return state.results()

    def _forward(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Any) -> Tensor:
        out = call(
            self.model,
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


class _State:
    """What the loop keeps for its rows: who lives, what was sampled, why rows ended."""

    def __init__(self, decoder: BatchDecoder, rows: list[Request], steps: int) -> None:
        self.decoder, self.rows, self.steps = decoder, rows, steps
        device, count = decoder.device, len(rows)
        self.tokens = torch.zeros(count, steps, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(count, steps, device=device)
        self.length = torch.zeros(count, dtype=torch.int64, device=device)
        self.reason = torch.zeros(count, dtype=torch.int64, device=device)
        self.alive = torch.arange(count, device=device)
        self.running = count
        self.top: list[list[dict[int, float]]] = [[] for _ in rows]

    def start(self, vocab: int, prompt_ids: Tensor, mask: Tensor) -> None:
        """Build the per-row tensors once the logits' width is known."""
        params = [request.params for request in self.rows]
        device = self.decoder.device
        self.params = RowParams.build(params, [request.seed for request in self.rows], vocab, device)
        self.budget = torch.tensor([p.max_tokens for p in params], device=device)
        distinct = {id(p): p for p in params}.values()
        self.has_strings = any(p.stop for p in distinct)
        self.has_top = any(p.logprobs for p in distinct)
        self.ends = torch.tensor(self.decoder.eos, dtype=torch.int64, device=device)
        self.stops = None
        if any(p.stop_tokens for p in distinct):
            # -1 never equals a token, so it fills the rows that have fewer stop tokens
            width = max(len(p.stop_tokens) for p in distinct)
            filled = [list(p.stop_tokens) + [-1] * (width - len(p.stop_tokens)) for p in params]
            self.stops = torch.tensor(filled, device=device)
        self.seen = None
        if self.params.penalty is not None:
            self.seen = torch.zeros(len(self.rows), vocab, dtype=torch.bool, device=device)
            rows = torch.arange(len(self.rows), device=device)[:, None].expand_as(prompt_ids)
            real = mask.bool()
            self.seen[rows[real], prompt_ids[real]] = True
        # rows that may sample nothing are finished before the first step
        self.reason[self.budget == 0] = LENGTH

    def step(self, step: int, logits: Tensor) -> Tensor:
        """Sample one token for the rows in ``alive`` and note which of them ended; returns the tokens [alive]."""
        tokens, logprobs = sample(logits, self.params, step, self.seen)
        alive = self.alive
        live = self.reason[alive] == RUNNING
        self.tokens[alive, step] = tokens
        self.logprobs[alive, step] = logprobs
        self.length[alive] += live
        if self.has_top:
            self._alternatives(logits, live)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        reason = torch.where(self.budget[alive] <= step + 1, LENGTH, RUNNING)
        if self.stops is not None:
            reason = torch.where((tokens[:, None] == self.stops[alive]).any(-1), STOP, reason)
        reason = torch.where(torch.isin(tokens, self.ends), EOS, reason)
        self.reason[alive] = torch.where(live, reason, self.reason[alive])
        if self.has_strings:
            self._strings(step)
        self.running = int((self.reason[alive] == RUNNING).sum())
        return tokens

    def shrink(self) -> Tensor | None:
        """Indices into the batch of the rows to keep once fewer than half are alive, else None."""
        if 2 * self.running >= len(self.alive):
            return None
        keep = (self.reason[self.alive] == RUNNING).nonzero().squeeze(-1)
        self.alive = self.alive[keep]
        self.params = self.params.select(keep)
        if self.seen is not None:
            self.seen = self.seen[keep]
        return keep

    def _strings(self, step: int) -> None:
        open_rows = self.alive[(self.reason[self.alive] == RUNNING) | (self.length[self.alive] == step + 1)]
        reasons = self.reason[open_rows].tolist()
        generated = self.tokens[open_rows, : step + 1].tolist()
        for row, reason, tokens in zip(open_rows.tolist(), reasons, generated, strict=True):
            request = self.rows[row]
            if reason in (RUNNING, LENGTH) and request.params.stop and self.decoder.stop_check(request, tokens):
                self.reason[row] = STOP

    def _alternatives(self, logits: Tensor, live: Tensor) -> None:
        scaled = logits if self.params.all_greedy else logits / self.params.temperature
        logprobs = scaled.log_softmax(-1)
        for index, row in enumerate(self.alive.tolist()):
            count = self.rows[row].params.logprobs
            if count and live[index]:
                best = logprobs[index].topk(min(count, logprobs.shape[1]))
                self.top[row].append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def results(self) -> list[Finished]:
        """The rows' results in their first order."""
        out = []
        columns = zip(
            self.tokens.tolist(), self.logprobs.tolist(), self.length.tolist(), self.reason.tolist(), strict=True
        )
        for row, (tokens, logprobs, length, reason) in enumerate(columns):
            top = self.top[row] if self.rows[row].params.logprobs else None
            out.append(Finished(tokens[:length], logprobs[:length], REASONS[reason], top))
        return out
