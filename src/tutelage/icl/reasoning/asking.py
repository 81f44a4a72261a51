"""How the methods speak to an engine: whole stages at once, with tokens, seconds and errors counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from tutelage.core.errors import DataError
from tutelage.engine.requests import Completion, Output, Prompt, SamplingParams
from tutelage.icl.reasoning.exemplars import CHAINS
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.settings import CurvePoint, Path, ProblemResult, ReasonResult, ReasonSettings

Shown = TypeVar("Shown")
"""A demonstration, of whatever shape the method has."""


class Engine(Protocol):
    """What a method needs: LocalEngine and RemoteEngine have it."""

    def generate(self, prompts: Any, params: Any = None) -> list[Output]:
        """One Output a prompt, in order."""
        ...


class Asker:
    """One method's run: its requests, and what they cost."""

    def __init__(self, engine: Engine, problems: Sequence[Problem], seed: int) -> None:
        if not problems:
            raise DataError("no problems to reason about; read_problems gives them")
        self.engine, self.problems, self.seed = engine, tuple(problems), seed
        self.notes: list[str] = []
        self.requests = 0
        self._prompt: int | None = 0
        self._generated: int | None = 0
        self._began = time.perf_counter()

    def ask(self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]) -> list[Output]:
        """One call for all prompts of a stage; the engine computes what they share once."""
        if not prompts:
            return []
        outputs = self.engine.generate(list(prompts), params)
        self.requests += len(prompts)
        for output in outputs:
            if output.error is not None:
                continue
            self._prompt = _sum(self._prompt, len(output.prompt_tokens) or None)
            for completion in output.completions:
                self._generated = _sum(self._generated, count(completion))
        return outputs

    def greedy(
        self, prompts: Sequence[Prompt], max_tokens: int, stop: tuple[str, ...] = (), logprobs: int | None = None
    ) -> list[Output]:
        """One greedy completion of each."""
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=stop, seed=self.seed, logprobs=logprobs)
        return self.ask(prompts, params)

    def note(self, words: str) -> None:
        """Tell the reader of the result, once."""
        if words not in self.notes:
            self.notes.append(words)

    def exemplars(self, settings: ReasonSettings, chain: bool) -> list[Problem]:
        """The demonstrations of the settings, else our own for the problems' kind of answer."""
        given = list(settings.exemplars) or list(CHAINS[self.problems[0].kind])
        if chain and settings.exemplars and not all(e.rationale for e in given):
            bare = sum(not e.rationale for e in given)
            raise DataError(f"{bare} of {len(given)} exemplars have no rationale; chain of thought shows one in each")
        kinds = {problem.kind for problem in self.problems}
        if not settings.exemplars and len(kinds) > 1:
            self.note(f"problems of kinds {', '.join(sorted(kinds))}: demonstrations are of {self.problems[0].kind}")
        if settings.exemplars and len(given) < settings.shots:
            self.note(f"{len(given)} demonstrations, {settings.shots} asked for")
        return given[: settings.shots]

    def fit(
        self, exemplars: list[Shown], make: Callable[[list[Shown], Problem], Prompt], room: int
    ) -> list[Shown]:
        """As many of the exemplars, from the first on, as fit the local model's context with every problem.

        They are cut as one set for all problems, which keeps the prompts' common part common; a note says so. A
        server's context is not known: what does not fit is an error of that problem.
        """
        context = getattr(self.engine, "context_length", None)
        encode = getattr(self.engine, "encode", None)
        if context is None or encode is None or not exemplars:
            return exemplars
        bare = [len(encode(make([], problem))) for problem in self.problems]
        longest = self.problems[bare.index(max(bare))]
        kept = list(exemplars)
        while kept and len(encode(make(kept, longest))) + room > context:
            kept.pop()
        if len(kept) < len(exemplars):
            self.note(f"{len(kept)} of {len(exemplars)} demonstrations fit the context of {context} tokens")
        return kept

    def result(
        self,
        method: str,
        results: Sequence[ProblemResult],
        exemplars: Sequence[Problem] = (),
        curve: Sequence[CurvePoint] = (),
    ) -> ReasonResult:
        """Everything together."""
        errors = [r.error for r in results if r.error is not None]
        if errors:
            self.note(f"{len(errors)} of {len(results)} problems got no answer, the first: {errors[0]}")
        return ReasonResult(
            method, tuple(results), self.seed, time.perf_counter() - self._began, self._prompt, self._generated,
            self.requests, tuple(curve), tuple(exemplars), tuple(self.notes),
        )  # fmt: skip


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def count(completion: Completion) -> int | None:
    """Tokens of a completion; None where a server told neither ids nor log-probs."""
    return len(completion.tokens) or len(completion.logprobs) or (None if completion.text else 0)


def path(completion: Completion, answer: str | None) -> Path:
    """A completion as a path."""
    logprob = sum(completion.logprobs) if completion.logprobs else None
    return Path(completion.text, answer, logprob, count(completion))


def single(problem: Problem, prediction: str | None, found: Path | None, error: str | None = None) -> ProblemResult:
    """The result of a method with one path."""
    paths = () if found is None else (found,)
    return ProblemResult(problem, prediction, error is None and problem.grade(prediction), paths, None, error)
