"""Examples, templates, a fake engine and a fake scorer for the tests of demonstration selection."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tutelage.engine.requests import Completion, Output, SamplingParams, Score
from tutelage.icl.examples import Example
from tutelage.icl.prompts import Format

LABELS = ("negative", "positive")


def review(text: str, gold: int = 0, options: tuple[str, ...] = LABELS) -> Example:
    return Example({"sentence": text}, text, options, gold, options[gold] if options else "")


def open_question(text: str, answer: str) -> Example:
    return Example({"question": text}, text, answer=answer)


REVIEWS = Format(input="Review: {text}", output="\nSentiment: {answer}", separator="\n\n")


def noise(*parts: object) -> float:
    """A number in (0, 1) that depends on the parts alone."""
    return (zlib.crc32(repr(parts).encode()) + 1) / (2**32 + 2)


@dataclass
class FakeEngine:
    """Scores by a function of (context, continuation) -> log-prob of each token; generates what it is told."""

    tokens: Callable[[str, str], Sequence[float]] = lambda context, continuation: [
        np.log(noise(context, continuation, i)) for i in range(1 + len(continuation) % 3)
    ]
    write: Callable[[str, SamplingParams, int], str] = lambda prompt, params, j: f"text {noise(prompt, params.seed, j)}"
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def score(self, pairs: Sequence[tuple[str, str]], max_tokens: int = 2048) -> list[Score]:
        self.calls.append(("score", list(pairs)))
        return [Score(float(sum(t)), tuple(t)) for t in (self.tokens(*pair) for pair in pairs)]

    def generate(self, prompts: Sequence[str], params: Any = None) -> list[Output]:
        self.calls.append(("generate", list(prompts)))
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        out = []
        for prompt, one in zip(prompts, each, strict=True):
            made = []
            for j in range(one.n):
                logprobs = tuple(float(t) for t in self.tokens(prompt, "generated"))
                made.append(Completion(self.write(prompt, one, j), (), logprobs, "stop"))
            out.append(Output((), tuple(made)))
        return out


@dataclass
class FakeScorer:
    """Log-probs that depend on the set's texts in order and the query's text; counts its calls."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, sets: Sequence[Sequence[Example]], queries: Sequence[Example]) -> np.ndarray:
        self.calls.append((len(sets), len(queries)))
        return np.array([[self.one(s, q) for q in queries] for s in sets])

    def one(self, shown: Sequence[Example], query: Example) -> list[float]:
        texts = [e.text for e in shown]
        return [6 * np.log(noise(texts, query.text, o)) for o in range(len(query.options))]


def sentences(count: int, seed: int, vocabulary: int = 40, longest: int = 12) -> list[str]:
    """Distinct sentences of made-up words, Zipf-like."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocabulary + 1)
    made: dict[str, None] = {}
    while len(made) < count:
        picked = rng.choice(vocabulary, size=int(rng.integers(2, longest)), p=weights / weights.sum())
        made[" ".join(f"w{i}" for i in picked)] = None
    return list(made)
