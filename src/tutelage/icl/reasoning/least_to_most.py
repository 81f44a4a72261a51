r"""Least-to-most prompting (Zhou et al. 2022): take a problem apart, then solve the parts in order.

Stage 1, few-shot: "Q: ..\nSub-questions:\n1. ..". Stage 2, few-shot: each sub-question after the problem and the parts
already solved; the last one is the problem itself. All problems advance together, one engine call a step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tutelage.engine.requests import Prompt
from tutelage.icl.reasoning.asking import Asker, Engine, count, single
from tutelage.icl.reasoning.exemplars import STEPS, Steps
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.prompts import one_message
from tutelage.icl.reasoning.settings import Path, ProblemResult, ReasonResult, ReasonSettings

_LISTED = re.compile(r"^\s*\d+\s*[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_TAKE_APART = "Sub-questions:"
STOP_PARTS = ("\n\n", "\nQ:")
STOP_SOLVED = ("\nQ:", "\nProblem:")


def decomposition(shown: Steps) -> str:
    """A demonstration of stage 1."""
    listed = "".join(f"{i}. {asked}\n" for i, (asked, _) in enumerate(shown.subquestions, 1))
    return f"Q: {shown.question}\n{_TAKE_APART}\n{listed}\n"


def solution(shown: Steps) -> str:
    """A demonstration of stage 2."""
    parts = (*shown.subquestions, (shown.question, shown.answer))
    return f"Problem: {shown.question}\n" + "".join(f"Q: {asked}\nA: {said}\n" for asked, said in parts) + "\n"


def subquestions(text: str, most: int, problem: Problem) -> list[str]:
    """The numbered lines of a decomposition, at most ``most``, without the problem itself and repetitions."""
    found = dict.fromkeys(_LISTED.findall(text))
    return [asked for asked in found if asked not in (problem.question, problem.text)][:most]


def least_to_most(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Decompose, then solve in order; the answer is that of the last step. At most ``max_hops`` sub-questions."""
    asker = Asker(engine, problems, seed)
    given = list(STEPS[asker.problems[0].kind][: settings.shots])

    def take_apart(shown: list[Steps], p: Problem) -> Prompt:
        return one_message("".join(map(decomposition, shown)) + f"Q: {p.text}\n{_TAKE_APART}\n", settings.chat)

    shown = asker.fit(given, take_apart, settings.max_tokens)
    outputs = asker.greedy(
        [take_apart(shown, p) for p in problems], settings.max_tokens, () if settings.chat else STOP_PARTS
    )
    runs = [
        _Run(p, output.text, subquestions(output.text, settings.max_hops, p) if output.completions else [])
        for p, output in zip(asker.problems, outputs, strict=True)
    ]
    for run, output in zip(runs, outputs, strict=True):
        run.error = None if output.completions else output.error or "no completion"
        run.spend(count(output.completions[0]) if output.completions else 0)
    whole = sum(not run.asked for run in runs if run.error is None)
    if whole:
        asker.note(f"{whole} of {len(runs)} problems were not taken apart; they were asked as a whole")
    shown = asker.fit(given, lambda e, p: one_message(_solving(e, p), settings.chat), 2 * settings.max_tokens)
    _solve(asker, runs, _before(shown), settings)
    return asker.result("least_to_most", [run.result() for run in runs])


class _Run:
    """A problem on its way: its sub-questions, and those solved."""

    def __init__(self, problem: Problem, decomposed: str, asked: list[str]) -> None:
        self.problem, self.asked = problem, asked
        self.said: tuple[str, ...] = (decomposed,)
        self.solved = ""
        self.tokens: int | None = 0
        self.error: str | None = None

    def spend(self, tokens: int | None) -> None:
        """Add to the tokens generated."""
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens

    def question(self, step: int) -> str | None:
        """The question of a step; after the sub-questions the problem itself, then None."""
        if self.error is not None or step > len(self.asked):
            return None
        return self.asked[step] if step < len(self.asked) else self.problem.text

    def result(self) -> ProblemResult:
        """The answer is read from the last step."""
        if self.error is not None:
            return single(self.problem, None, None, self.error)
        answer = self.problem.read(self.said[-1])
        return single(self.problem, answer, Path(self.solved, answer, None, self.tokens, self.said))


def _before(shown: Sequence[Steps]) -> str:
    return "".join(map(solution, shown))


def _solving(shown: Sequence[Steps], problem: Problem) -> str:
    return f"{_before(shown)}Problem: {problem.text}\nQ: {problem.text}\nA:"


def _solve(asker: Asker, runs: Sequence[_Run], before: str, settings: ReasonSettings) -> None:
    """Stage 2: step by step, all problems that still have one in one call."""
    step = 0
    while going := [(run, asked) for run in runs if (asked := run.question(step)) is not None]:
        prompts = []
        for run, asked in going:
            run.solved += f"Q: {asked}\nA:"
            prompts.append(one_message(f"{before}Problem: {run.problem.text}\n{run.solved}", settings.chat))
        outputs = asker.greedy(prompts, settings.max_tokens, () if settings.chat else STOP_SOLVED)
        for (run, _), output in zip(going, outputs, strict=True):
            if not output.completions:
                run.error = output.error or "no completion"
                continue
            run.said += (output.text,)
            run.solved += f" {output.text.strip()}\n"
            run.spend(count(output.completions[0]))
        step += 1
