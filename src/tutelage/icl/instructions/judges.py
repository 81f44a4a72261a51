"""How good an instruction is: the likelihood of right answers after it, or how many answers come out right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tutelage.core.errors import DataError
from tutelage.engine.requests import SamplingParams
from tutelage.icl.instructions.metrics import Metric
from tutelage.icl.instructions.prompts import MetaPrompts, Render
from tutelage.icl.instructions.ranked import Pair, Ranked, best_first, generate, score

Judge = Callable[[Sequence[tuple[str, Pair]]], Sequence[float]]
"""judge([(instruction, pair), ...]) -> one value each, higher is better. All at once: the engine shares prefixes."""


def continuation(context: str, answer: str) -> str:
    """The answer with the blank that parts it from the context, where the template has none."""
    return answer if context[-1:].isspace() or not context else f" {answer}"


def likelihood_judge(engine: Any, render: Render | None = None) -> Judge:
    """Mean log-probability, in nats, of the first right answer's tokens after instruction and input; one score call."""
    shown = render or MetaPrompts().context

    def judge(asked: Sequence[tuple[str, Pair]]) -> list[float]:
        blank = next((pair for _, pair in asked if not pair.answers[0].strip()), None)
        if blank is not None:
            raise DataError(f"the answer to {blank.input!r} is empty: it has no token to score")
        contexts = [shown(instruction, pair.example) for instruction, pair in asked]
        pairs = [(c, continuation(c, p.answers[0])) for c, (_, p) in zip(contexts, asked, strict=True)]
        return [float(np.mean(one.token_logprobs)) for one in score(engine, pairs, "likelihood of answers")]

    return judge


def execution_judge(
    engine: Any, metric: Metric, render: Render | None = None, max_tokens: int = 30, chat: bool = False
) -> Judge:
    """The metric of the greedy answer of at most ``max_tokens`` tokens; one generate call."""
    shown = render or MetaPrompts().context
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)

    def judge(asked: Sequence[tuple[str, Pair]]) -> list[float]:
        # a blank at the end would split off the blank that belongs to the answer's first word
        prompts = [shown(instruction, pair.example).rstrip(" ") for instruction, pair in asked]
        distinct = list(dict.fromkeys(prompts))
        texts = {
            prompt: output.text
            for prompt, output in zip(distinct, generate(engine, distinct, params, "execution", chat), strict=True)
        }
        return [metric(texts[prompt], pair.answers) for prompt, (_, pair) in zip(prompts, asked, strict=True)]

    return judge


def judge_all(judge: Judge, instructions: Mapping[str, int] | Sequence[str], pairs: Sequence[Pair]) -> list[Ranked]:
    """Every instruction on every pair, in one call of the judge; the mean is the score.

    instructions: those to try, or how often each was proposed by instruction.
    """
    names = list(instructions)
    values = np.asarray(judge([(name, pair) for name in names for pair in pairs]), dtype=np.float64)
    means = values.reshape(len(names), len(pairs)).mean(axis=1)
    times = instructions if isinstance(instructions, Mapping) else dict.fromkeys(names, 1)
    return best_first(Ranked(n, float(m), len(pairs), times[n]) for n, m in zip(names, means, strict=True))
