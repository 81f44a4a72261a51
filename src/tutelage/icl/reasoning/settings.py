"""What every reasoning method is told, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tutelage.core.errors import ConfigError
from tutelage.core.stats import calibration_error, wilson
from tutelage.icl.reasoning.problems import Problem

Weighting = Literal["majority", "normalised", "unnormalised"]
Embed = Literal["tfidf", "hidden", "sentence"] | Callable[[Sequence[str]], np.ndarray]
Tool = Callable[[str], str]


@dataclass(frozen=True)
class ReasonSettings:
    """Settings of all methods; each reads those that concern it. ConfigError naming a wrong one."""

    exemplars: Sequence[Problem] = ()
    """Demonstrations, in order; empty: those written for the problems' kind of answer (exemplars.py)."""
    shots: int = 8
    """At most so many of them. Self-consistency with 0 samples the zero-shot chain of thought."""
    trigger: str = "Let's think step by step."
    """What opens the reasoning (zero-shot chain of thought, Auto-CoT); prompts.TRIGGERS has the published ones."""
    max_tokens: int = 256
    """Longest reasoning in tokens (Kojima et al.: 128; Auto-CoT: 256)."""
    answer_tokens: int = 32
    """Longest answer where it is asked for apart."""
    chat: bool = False
    """Prompts as messages, for models with a chat template."""

    paths: int = 40
    """Sampled chains of thought for each problem (self-consistency)."""
    temperature: float = 0.7
    top_k: int = 0
    """Wang et al.: temperature 0.5 and top-k 40, or 0.7 without top-k."""
    weighting: Weighting = "majority"
    paths_per_request: int = 0
    """0: all paths in one request. 1, with seeds of their own, for servers that answer only one at a time."""
    draws: int = 200
    """Random orders of the paths behind a weighted curve; the majority's is exact."""

    clusters: int = 8
    """Auto-CoT: demonstrations; Zhang et al. take 8, 4 for AQuA and last letters, 7 for CSQA, 6 for StrategyQA."""
    pool: Sequence[Problem] = ()
    """Auto-CoT: questions that demonstrations are made of; empty: the problems themselves, as in the paper."""
    embed: Embed = "tfidf"
    """Auto-CoT: "tfidf", "hidden" (the local model's states), "sentence" (all-MiniLM-L6-v2), or a function."""
    max_question_words: int = 60
    max_steps: int = 5
    """Auto-CoT: most lines of a demonstration's reasoning (the paper: 7 for last letters)."""
    max_candidates: int = 64
    """Auto-CoT: most questions of a cluster that are tried; a model that reasons badly would try them all."""

    tool: Tool | None = None
    """Self-ask: what answers a follow-up question (a search, a calculator); None: the model itself."""
    max_hops: int = 6
    """Self-ask: most follow-up questions; least-to-most: most sub-questions."""

    def __post_init__(self) -> None:
        least = {"shots": 0, "max_tokens": 1, "answer_tokens": 1, "paths": 1, "top_k": 0, "paths_per_request": 0,
                 "draws": 1, "clusters": 1, "max_question_words": 1, "max_steps": 1, "max_hops": 1,
                 "max_candidates": 1}  # fmt: skip
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ConfigError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.weighting not in ("majority", "normalised", "unnormalised"):
            raise ConfigError(f"weighting={self.weighting!r}; expected majority, normalised or unnormalised")
        if not callable(self.embed) and self.embed not in ("tfidf", "hidden", "sentence"):
            raise ConfigError(f"embed={self.embed!r}; expected tfidf, hidden, sentence or a function of texts")
        if self.tool is not None and not callable(self.tool):
            raise ConfigError(f"tool is a {type(self.tool).__name__}; expected a function str -> str")


@dataclass(frozen=True)
class Path:
    """One chain of thought: its text, the answer read from it, and what it cost."""

    text: str
    answer: str | None
    logprob: float | None = None
    """Sum of its tokens' log-probabilities in nats; None where the server gave none."""
    tokens: int | None = None
    """Tokens generated, the stages together; None where the server told neither tokens nor log-probs."""
    stages: tuple[str, ...] = ()
    """What the model said in each stage, where there is more than one."""


@dataclass(frozen=True)
class ProblemResult:
    """What became of one problem. ``prediction`` None: no answer could be read, which counts as wrong."""

    problem: Problem
    prediction: str | None
    correct: bool
    paths: tuple[Path, ...] = ()
    agreement: float | None = None
    """Share of all paths' votes that the prediction got (self-consistency): a confidence."""
    error: str | None = None
    """Why the engine did not answer."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the model wrote, one text a path."""
        return tuple(path.text for path in self.paths)


@dataclass(frozen=True)
class CurvePoint:
    """Expected accuracy with ``paths`` paths, and its 95% interval over problems."""

    paths: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class ReasonResult:
    """A method's results on all problems, in their order."""

    method: str
    results: tuple[ProblemResult, ...]
    seed: int
    seconds: float
    prompt_tokens: int | None
    """Tokens of all prompts as sent; the local engine computes what they begin with alike once. None: not told."""
    generated_tokens: int | None
    requests: int = 0
    curve: tuple[CurvePoint, ...] = ()
    exemplars: tuple[Problem, ...] = ()
    """The demonstrations that stood in the prompts."""
    notes: tuple[str, ...] = field(default=())
    """What a reader of the numbers should know: demonstrations dropped, clusters without one, errors."""

    @property
    def accuracy(self) -> float:
        """Share of problems answered right; NaN without problems."""
        return sum(r.correct for r in self.results) / len(self.results) if self.results else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson(sum(r.correct for r in self.results), len(self.results))

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error of the agreement as a confidence; None without votes."""
        voted = [(r.agreement, float(r.correct)) for r in self.results if r.agreement is not None]
        return calibration_error(*map(list, zip(*voted))) if voted else None  # type: ignore[arg-type]

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON takes them."""
        low, high = self.interval
        unread = sum(r.prediction is None and r.error is None for r in self.results)
        found: Mapping[str, Any] = {
            "method": self.method,
            "problems": len(self.results),
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "unread": unread,
            "errors": sum(r.error is not None for r in self.results),
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "requests": self.requests,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "calibration_error": self.calibration_error,
            "curve": [[p.paths, p.accuracy, p.low, p.high] for p in self.curve],
            "notes": list(self.notes),
        }
        return dict(found)
