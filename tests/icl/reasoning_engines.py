"""Engines for the tests of reasoning: one that a function plays, and what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.engine import Completion, Output, SamplingParams
from tutelage.engine.requests import params_for


class Scripted:
    """``say(prompt as text, sample number)`` gives the completion; stop strings are obeyed. Words are its tokens."""

    def __init__(self, say: Callable[[str, int], str], logprobs: bool = True) -> None:
        self.say, self.logprobs = say, logprobs
        self.calls: list[list[Any]] = []
        self.params: list[SamplingParams] = []

    def generate(self, prompts: Sequence[Any], params: Any = None) -> list[Output]:
        each = params_for(params, len(prompts))
        self.calls.append(list(prompts))
        self.params += each
        return [self._one(prompt, p) for prompt, p in zip(prompts, each, strict=True)]

    def _one(self, prompt: Any, params: SamplingParams) -> Output:
        text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        said = []
        for j in range(params.n):
            whole = self.say(text, j)
            if whole == "REFUSED":
                return Output(error="refused")
            cut = min((whole.find(s) for s in params.stop if s in whole), default=len(whole))
            words = tuple(range(len(whole[:cut].split())))
            logs = tuple(-0.1 * (j + 1) for _ in words) if self.logprobs else ()
            said.append(Completion(whole[:cut], words if self.logprobs else (), logs, "stop"))
        return Output(tuple(range(len(text.split()))) if self.logprobs else (), tuple(said))
