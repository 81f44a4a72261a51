"""Static batches, for models that cannot follow plans (support.py): prefill once, then a token a step for live rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tutelage.engine.cache import make_cache, select_rows
from tutelage.engine.rows import Cancelled, Finished, Request, Rows, Rules
from tutelage.model.forward import call, position_ids


def left_pad(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded ids [B, T] and their mask [B, T] (int64)."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return ids, mask


def _recurrent(config: Any) -> bool:
    """Whether no layer attends to the past: those classes multiply one token's state by the whole mask."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or ["full_attention"]
    return not any(kind.endswith("attention") and kind != "linear_attention" for kind in kinds)


class CausalBatch:
    """Prompts after one left-padded prefill: ``logits`` [B, V] of the next token, and a cache to go on with."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], steps: int, pad: int, device: torch.device):
        """steps: most tokens that will be sampled for a row."""
        self.model = model
        ids, self.mask = left_pad(prompts, pad, device)
        self.cache = make_cache(model.config, ids.shape[1] + steps)
        self.position = self.mask.sum(-1, keepdim=True)
        self.recurrent = _recurrent(model.config)
        self.logits = self._forward(ids, position_ids(self.mask), self.mask)

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) the given rows (int64 indices)."""
        select_rows(self.cache, rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def step(self, last_B: Tensor) -> Tensor:
        """Logits [B, V] (float32) after one more token a row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], 1)], dim=1)
        logits = self._forward(last_B[:, None], self.position, None if self.recurrent else self.mask)
        self.position = self.position + 1
        return logits

    def _forward(self, ids: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        out = call(
            self.model,
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


class BatchDecoder:
    """Decodes one batch of requests by transformers' own caches; rows of one prompt share its prefill."""

    begin: Any = CausalBatch
    """What prefills the prompts and takes steps."""

    def __init__(self, model: Any, pad: int, rules: Rules) -> None:
        self.model = model
        self.pad = pad
        self.rules = rules

    def row(self, request: Request) -> Request:
        """The request as the sampler sees it."""
        return request

    def run(self, groups: Sequence[Sequence[Request]], cancelled: threading.Event | None = None) -> list[Finished]:
        """Decode groups of requests that share a prompt; results in the order of the flattened groups."""
        requests = [self.row(request) for group in groups for request in group]
        stateful = any(hasattr(module, "_setup_cache") for module in self.model.modules())
        if stateful:  # recurrent states inside the modules (RecurrentGemma): rows cannot be repeated or dropped
            groups = [[request] for request in requests]
        steps = max(request.params.max_tokens for request in requests)
        results: list[Finished | None] = [None] * len(requests)
        if steps == 0:
            return [Finished([], [], "length", [] if r.params.logprobs else None) for r in requests]
        batch = self.begin(self.model, [group[0].prompt for group in groups], steps, self.pad, self.rules.device)
        logits = batch.logits
        if len(requests) != len(groups):
            repeat = torch.tensor([i for i, g in enumerate(groups) for _ in g], device=self.rules.device)
            batch.select(repeat)
            logits = logits[repeat]
        rows = Rows(self.rules)
        rows.join(requests, logits.shape[-1])
        numbers = list(range(len(requests)))
        for step in range(steps):
            if cancelled is not None and cancelled.is_set():
                raise Cancelled
            rows.draw(logits)
            done = set(rows.ended())
            if len(done) == len(rows) or step + 1 == steps:
                break
            if 2 * len(done) > len(rows) and not stateful:  # copying a cache costs more than a few idle rows
                self._collect(rows, sorted(done), numbers, results)
                keep = [i for i in range(len(rows)) if i not in done]
                rows.select(keep)
                numbers = [numbers[i] for i in keep]
                batch.select(torch.tensor(keep, device=self.rules.device))
            logits = batch.step(rows.last)
        self._collect(rows, range(len(rows)), numbers, results)
        return results  # type: ignore[return-value]

    @staticmethod
    def _collect(rows: Rows, done: Sequence[int], numbers: Sequence[int], results: list[Finished | None]) -> None:
        for i, result in zip(done, rows.results(list(done))):
            results[numbers[i]] = result


def batches_of(
    order: Sequence[int], groups: Sequence[Sequence[Request]], max_rows: int, max_tokens: int, even: bool = False
) -> Iterator[list[int]]:
    """Cut ``order`` (shortest prompt first) where rows or padded tokens would exceed their limits (even: and at
    every new length)."""
    batch: list[int] = []
    rows, new = 0, 0
    for i in order:
        first = groups[i][0]
        width = len(first.prompt) + max(new, first.params.max_tokens)
        more = rows + len(groups[i])
        uneven = even and bool(batch) and len(groups[batch[0]][0].prompt) != len(first.prompt)
        if batch and (uneven or more > max_rows or more * width > max_tokens):
            yield batch
            batch, rows, new = [], 0, 0
        batch.append(i)
        rows += len(groups[i])
        new = max(new, first.params.max_tokens)
    if batch:
        yield batch
