"""What is asked of an engine and what comes back. Plain frozen data; no torch needed to import it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

from tutelage.core.errors import ConfigError, DataError

NOT_A_NUMBER = "the model gives NaN: its weights are not finite, or they overflow in this dtype"

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Plain text to continue, token ids, or a list of {"role", "content"} messages, whose answer ends with the turn."""


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, repetition_penalty 1 mean off. ``stop`` are strings (the text
    ends before them), ``stop_tokens`` ids that end it as the end-of-text token does, ``banned_tokens`` are never
    sampled, ``logit_bias`` maps ids to a number added to the logit. ``logprobs``: how many alternatives.

    The same ``seed`` and prompt give the same completion whatever else is in the batch, and different prompts draw
    independently; None draws a seed from torch's generator.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    banned_tokens: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        object.__setattr__(self, "banned_tokens", tuple(self.banned_tokens))
        checks: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
            ("max_tokens", lambda x: index(x) >= 0, "a whole number of at least 0"),
            ("temperature", lambda x: 0 <= x < math.inf, "finite and at least 0"),
            ("top_k", lambda x: index(x) >= 0, "a whole number of at least 0"),
            ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
            ("min_p", lambda x: 0 <= x <= 1, "within 0 and 1"),
            ("n", lambda x: index(x) >= 1, "a whole number of at least 1"),
            ("repetition_penalty", lambda x: 0 < x < math.inf, "finite and above 0"),
            ("stop", lambda x: all(isinstance(s, str) and s for s in x), "strings that are not empty"),
            ("logprobs", lambda x: x is None or index(x) >= 0, "a whole number of at least 0"),
            ("prompt_logprobs", lambda x: x is None or index(x) >= 0, "a whole number of at least 0"),
            # the sum with a logit is divided by the temperature, and must not overflow
            ("logit_bias", lambda x: all(v < 1e30 for v in (x or {}).values()), "numbers below 1e30"),
        )
        for name, fine, expected in checks:
            value = getattr(self, name)
            try:
                right = fine(value)
            except TypeError:  # no number at all
                right = False
            if not right:
                raise ConfigError(f"{name} must be {expected}, got {value!r}")


def params_for(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """One SamplingParams for each of ``count`` prompts. DataError when another number of them was given."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise DataError(f"{count} prompts but {len(params)} SamplingParams")
    return list(params)


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is messages rather than text or token ids."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


@dataclass(frozen=True)
class Completion:
    """One continuation.

    ``tokens`` include the token that ended it (end-of-text or stop token); ``text`` does not. ``logprobs``: each
    token's log-probability in nats under the model at the request's temperature, before bans, biases, penalties and
    truncation. ``finish_reason``: "stop" | "length" | "eos". ``top_logprobs``: for each token a map id -> log-prob
    (of a server: the token's text -> log-prob).
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    top_logprobs: tuple[Mapping[int, float] | Mapping[str, float], ...] | None = None


@dataclass(frozen=True)
class Output:
    """The answer to one prompt: ``completions`` (n of them), or an ``error`` and no completions.

    ``unserved``: the error is the server's rather than this prompt's, so that asking again later may succeed.
    """

    prompt_tokens: tuple[int, ...] = ()
    completions: tuple[Completion, ...] = ()
    error: str | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    unserved: bool = False

    @property
    def text(self) -> str:
        """The first completion's text ("" if there is none)."""
        return self.completions[0].text if self.completions else ""


@dataclass(frozen=True)
class Score:
    """Log-probability of a continuation given its context, in nats, with its per-token parts.

    ``is_greedy``: every token was the model's first choice. ``top_logprobs``: of each token the likeliest alternatives,
    where they were asked for.
    """

    logprob: float
    token_logprobs: tuple[float, ...] = ()
    is_greedy: bool = False
    tokens: tuple[int, ...] = ()
    error: str | None = None
    top_logprobs: tuple[Mapping[int, float], ...] = ()


@dataclass(frozen=True)
class Cloze:
    """A text with a gap, in the place of a pair's context: the continuation is what fills it.

    A masked LM reads it at masks, an encoder-decoder at a sentinel; a causal LM does not see what stands behind.
    """

    before: str
    after: str = ""


@dataclass
class Counts:
    """Tokens of prompts and of scored pairs: ``asked`` had every request been computed alone, ``computed`` really.

    Safe to add to from several threads.
    """

    asked: int = 0
    computed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, asked: int, computed: int) -> None:
        """Count one call."""
        with self._lock:
            self.asked += asked
            self.computed += computed


@dataclass(frozen=True)
class Piece:
    """A streamed piece of text; the last one carries the finish reason."""

    text: str
    tokens: tuple[int, ...] = field(default=())
    finish_reason: str | None = None
