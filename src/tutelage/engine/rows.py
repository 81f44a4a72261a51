"""The rows that are being decoded: what each sampled, with which parameters, and why it ended. No Python per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tutelage.engine.requests import SamplingParams
from tutelage.engine.sampling import RowParams, sample

RUNNING, LENGTH, EOS, STOP = 0, 1, 2, 3
REASONS = ("length", "length", "eos", "stop")


class Cancelled(Exception):
    """The reader of a completion has gone."""


@dataclass(eq=False)
class Request:
    """One row to decode: prompt ids, parameters, and the seed of this very sample."""

    prompt: Sequence[int]
    params: SamplingParams
    seed: int
    on_sample: Callable[[int, float, dict[int, float] | None], None] | None = None
    """Called with every token as it is sampled, its log-prob, and the alternatives if they are asked for. Where it
    raises, this row alone ends, with that `error`."""
    on_end: Callable[[Finished], None] | None = None
    """Called by the scheduler with what the row came to; must not raise."""
    error: Exception | None = None


@dataclass
class Finished:
    """A row's result: tokens (the ending one included), their log-probs, the reason, alternatives if asked."""

    tokens: list[int]
    logprobs: list[float]
    reason: str
    top: list[dict[int, float]] | None = None
    error: Exception | None = None


@dataclass
class Rules:
    """What ends a row beside its own parameters: end-of-text ids, and a test of its text for its stop strings."""

    eos: Sequence[int]
    has_stop: Callable[[Request, list[int]], bool]
    device: torch.device


@dataclass
class Rows:
    """State of n rows; place i of every list and tensor is one row."""

    rules: Rules
    requests: list[Request] = field(default_factory=list)
    top: list[list[dict[int, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = self.rules.device
        self.last = torch.zeros(0, dtype=torch.int64, device=device)
        """The token that each row sampled last."""
        self.made = torch.zeros(0, dtype=torch.int64, device=device)
        self.reason = torch.zeros(0, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(0, 0, device=device)
        self.seen: Tensor | None = None
        self.params: RowParams | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def join(self, new: Sequence[Request], vocab: int) -> None:
        """Add rows at the end. A row that may sample nothing has ended at once."""
        old = len(self)
        self.requests += new
        self.top += [[] for _ in new]
        width = max(self.tokens.shape[1], *(r.params.max_tokens for r in new), 1)
        grow = (0, width - self.tokens.shape[1], 0, len(new))
        self.tokens = torch.nn.functional.pad(self.tokens, grow)
        self.logprobs = torch.nn.functional.pad(self.logprobs, grow)
        self.last, self.made, self.reason = (
            torch.nn.functional.pad(x, (0, len(new))) for x in (self.last, self.made, self.reason)
        )
        self._describe(vocab)
        self.reason[old:][self.budget[old:] == 0] = LENGTH
        if self.params is None or self.params.penalty is None:
            self.seen = None  # the rows that needed it have left
        else:
            seen = torch.zeros(len(self), vocab, dtype=torch.bool, device=self.rules.device)
            if self.seen is not None:
                seen[:old] = self.seen
            else:  # rows that had no need of it so far
                for i, made in enumerate(self.made[:old].tolist()):
                    seen[i, self.tokens[i, :made]] = True
                    seen[i, torch.tensor(list(self.requests[i].prompt))] = True
            for i, request in enumerate(new, old):
                seen[i, torch.tensor(list(request.prompt))] = True
            self.seen = seen

    def _describe(self, vocab: int) -> None:
        """Parameters as tensors."""
        self._ends = torch.tensor(list(self.rules.eos), dtype=torch.int64, device=self.rules.device)
        params, device = [r.params for r in self.requests], self.rules.device
        self.params = RowParams.build(params, [r.seed for r in self.requests], vocab, device)
        self.budget = torch.tensor([p.max_tokens for p in params], device=device)
        distinct = {id(p): p for p in params}.values()
        self._has_strings = any(p.stop for p in distinct)
        self._has_top = any(p.logprobs for p in distinct)
        self._callbacks = any(r.on_sample for r in self.requests)
        self.stops: Tensor | None = None
        if any(p.stop_tokens for p in distinct):
            # -1 never equals a token, so it fills the rows that have fewer stop tokens
            most = max(len(p.stop_tokens) for p in distinct)
            filled = [list(p.stop_tokens) + [-1] * (most - len(p.stop_tokens)) for p in params]
            self.stops = torch.tensor(filled, device=device)

    def select(self, order: Sequence[int]) -> None:
        """Keep the given rows, in that order."""
        index = torch.tensor(order, dtype=torch.int64, device=self.rules.device)
        self.requests = [self.requests[i] for i in order]
        self.top = [self.top[i] for i in order]
        for name in ("last", "made", "reason", "tokens", "logprobs", "budget", "seen", "stops"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, index))
        if self.params is not None:
            self.params = self.params.select(index)

    def draw(self, logits_MV: Tensor, start: int = 0) -> None:
        """Sample one token for the rows from `start` on (M of them) from float32 logits, and note which of them end."""
        assert self.params is not None
        part = slice(start, len(self))
        params = self.params
        if start:
            params = params.select(torch.arange(start, len(self), device=self.last.device))
        seen = None if self.seen is None else self.seen[part]
        tokens, logprobs = sample(logits_MV, params, self.made[part], seen)
        live = self.reason[part] == RUNNING
        at = self.made[part].clamp(max=self.tokens.shape[1] - 1)[:, None]
        rows = torch.arange(start, len(self), device=tokens.device)[:, None]
        self.tokens[rows, at] = torch.where(live[:, None], tokens[:, None], self.tokens[rows, at])
        self.logprobs[rows, at] = torch.where(live[:, None], logprobs[:, None], self.logprobs[rows, at])
        self.made[part] += live
        self.last[part] = tokens
        if self._has_top:
            self._alternatives(logits_MV, live, params, start)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        reason = torch.where(self.made[part] >= self.budget[part], LENGTH, RUNNING)
        if self.stops is not None:
            reason = torch.where((tokens[:, None] == self.stops[part]).any(-1), STOP, reason)
        reason = torch.where(torch.isin(tokens, self._ends), EOS, reason)
        self.reason[part] = torch.where(live, reason, self.reason[part])
        if self._callbacks:
            self._tell(tokens.tolist(), logprobs.tolist(), live.tolist(), start)
        if self._has_strings:
            self._strings(start)

    def _tell(self, tokens: Sequence[int], logprobs: Sequence[float], live: Sequence[bool], start: int) -> None:
        for i, (token, logprob, lives) in enumerate(zip(tokens, logprobs, live), start):
            request = self.requests[i]
            if request.on_sample is not None and lives:
                try:
                    request.on_sample(token, logprob, self.top[i][-1] if self.top[i] else None)
                except Exception as problem:  # the other rows of the batch are not to suffer
                    request.error, self.reason[i] = problem, STOP

    def _strings(self, start: int) -> None:
        made, reasons = self.made.tolist(), self.reason.tolist()
        for i in range(start, len(self)):
            request = self.requests[i]
            if request.params.stop and reasons[i] in (RUNNING, LENGTH) and made[i]:
                try:
                    if self.rules.has_stop(request, self.tokens[i, : made[i]].tolist()):
                        self.reason[i] = STOP
                except Exception as problem:  # a decoder that raises is this row's affair alone
                    request.error, self.reason[i] = problem, STOP

    def _alternatives(self, logits_MV: Tensor, live: Tensor, params: RowParams, start: int) -> None:
        logprobs = (logits_MV if params.all_greedy else logits_MV / params.temperature).log_softmax(-1)
        for i, lives in enumerate(live.tolist()):
            count = self.requests[start + i].params.logprobs
            if count and lives:
                best = logprobs[i].topk(min(count, logprobs.shape[1]))
                self.top[start + i].append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def ended(self) -> list[int]:
        """The rows that have ended."""
        return (self.reason != RUNNING).nonzero().squeeze(-1).tolist()

    def results(self, rows: Sequence[int]) -> list[Finished]:
        """What the given rows came to."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.rules.device)
        columns: Any = zip(
            rows, self.tokens[index].tolist(), self.logprobs[index].tolist(), self.made[index].tolist(),
            self.reason[index].tolist(),
        )  # fmt: skip
        return [
            Finished(
                tokens[:made], logprobs[:made], REASONS[reason],
                self.top[i] if self.requests[i].params.logprobs else None, self.requests[i].error,
            )
            for i, tokens, logprobs, made, reason in columns
        ]  # fmt: skip
