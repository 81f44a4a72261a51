"""What instruction search takes and gives, and its two ways to ask an engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.core.errors import DataError
from tutelage.engine.requests import Output, SamplingParams, Score
from tutelage.icl.examples import Example


@dataclass(frozen=True)
class Pair:
    """An input, and the answers that are right; the first one is the one that demonstrations show."""

    input: str
    answers: tuple[str, ...]
    origin: Example | None = field(default=None, compare=False, repr=False)
    """The example of a task that it is, where templates name its columns."""

    def __post_init__(self) -> None:
        if not self.answers:
            raise DataError(f"the input {self.input!r} has no answer")

    @property
    def example(self) -> Example:
        """The input as templates read it."""
        return self.origin or Example({"text": self.input}, self.input)


def pairs_of(examples: Iterable[Example]) -> list[Pair]:
    """Examples of any task as pairs of text and gold answer; DataError for one without an answer."""
    pairs = []
    for i, example in enumerate(examples):
        answer = example.answer or (example.options[example.gold] if 0 <= example.gold < len(example.options) else "")
        if not answer:
            raise DataError(f"example {i} ({example.text[:40]!r}) has no gold answer")
        pairs.append(Pair(example.text, (answer,), example))
    return pairs


@dataclass(frozen=True)
class Ranked:
    """An instruction (or prompt, or template) and what was found about it."""

    instruction: str
    score: float
    """Higher is better, whatever the method; nan where it was never tried."""
    evaluations: int
    """How many inputs it was tried on."""
    times: int = 1
    """How often it was proposed."""


def best_first(found: Iterable[Ranked]) -> list[Ranked]:
    """Highest score first; of equal ones those tried more often, then as they came; the untried last."""
    return sorted(found, key=lambda r: (math.isnan(r.score), -r.score if r.score == r.score else 0.0, -r.evaluations))


def generate(
    engine: Any, prompts: Sequence[str], params: SamplingParams, what: str, chat: bool = False
) -> list[Output]:
    """One engine call. DataError names the first prompt that failed and how many did.

    ``chat``: each prompt is one user's turn instead of a text to continue.
    """
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts] if chat else list(prompts)
    outputs = engine.generate(asked, params)
    _check(what, [output.error for output in outputs])
    return list(outputs)


def score(engine: Any, pairs: Sequence[tuple[str, str]], what: str) -> list[Score]:
    """One engine call. DataError names the first pair that failed and how many did, or that has no token to score."""
    scores = list(engine.score(list(pairs)))
    _check(what, [one.error for one in scores])
    empty = next((pair for pair, one in zip(pairs, scores, strict=True) if not one.token_logprobs), None)
    if empty is not None:
        raise DataError(f"{what}: {empty[1]!r} after {empty[0][-40:]!r} has no token to score")
    return scores


def _check(what: str, errors: Sequence[str | None]) -> None:
    failed = [i for i, error in enumerate(errors) if error]
    if failed:
        raise DataError(f"{what}: {len(failed)} of {len(errors)} failed, first number {failed[0]}: {errors[failed[0]]}")
