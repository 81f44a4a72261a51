r"""Self-ask (Press et al. 2022): the model asks itself follow-up questions; a tool may answer them.

    Question: ..
    Are follow up questions needed here: Yes.
    Follow up: ..
    Intermediate answer: ..
    So the final answer is: ..

All problems advance together: one engine call a round, whatever the number of problems.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.engine.requests import Completion, Prompt
from tutelage.icl.reasoning.asking import Asker, Engine, count, single
from tutelage.icl.reasoning.exemplars import SELF_ASK, FollowUps
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.prompts import one_message
from tutelage.icl.reasoning.settings import Path, ProblemResult, ReasonResult, ReasonSettings
from tutelage.text.answers import extract_answer

NEEDED = "Are follow up questions needed here:"
FOLLOW = "Follow up:"
INTERMEDIATE = "Intermediate answer:"
FINAL = "So the final answer is:"
_NEXT = "\nQuestion:"


@dataclass
class _Run:
    """A problem on its way: the transcript so far, and what the model said."""

    problem: Problem
    text: str
    said: tuple[str, ...] = ()
    tokens: int | None = 0
    done: bool = False
    error: str | None = None
    start: int = 0
    cut: bool = False
    """The last text ended at its length, perhaps in the middle of a question."""

    @property
    def own(self) -> str:
        """The transcript from this problem on."""
        return self.text[self.start :]

    def add(self, completion: Completion) -> None:
        """What the model said, as part of the transcript."""
        n = count(completion)
        self.tokens = None if self.tokens is None or n is None else self.tokens + n
        self.said += (completion.text,)
        apart = completion.text[:1].strip() and self.text[-1:].strip()
        self.text += f" {completion.text}" if apart else completion.text
        self.cut = completion.finish_reason == "length"


def transcript(shown: FollowUps) -> str:
    """A demonstration as the model is to write it."""
    asked = "".join(f"{FOLLOW} {question}\n{INTERMEDIATE} {answer}\n" for question, answer in shown.follow_ups)
    return f"Question: {shown.question}\n{NEEDED} Yes.\n{asked}{FINAL} {shown.answer}.\n\n"


def question(problem: Problem) -> str:
    """How a problem begins."""
    return f"Question: {problem.text}\n{NEEDED}"


def self_ask(engine: Engine, problems: Sequence[Problem], settings: ReasonSettings, seed: int = 0) -> ReasonResult:
    """Follow-up questions, answered by the model or by ``settings.tool``, then a final answer.

    With a tool the model stops at "Intermediate answer:", the tool is called with the last "Follow up:" and its answer
    is put there; after ``max_hops`` follow-ups, and where the model ends without it, the final answer is asked for
    with "So the final answer is:". What a tool raises is an answer too ("error: ..."), and noted.
    """
    asker = Asker(engine, problems, seed)

    def make(shown: list[FollowUps], problem: Problem) -> Prompt:
        return one_message("".join(map(transcript, shown)) + question(problem), settings.chat)

    shown = asker.fit(list(SELF_ASK[: settings.shots]), make, settings.max_tokens + settings.answer_tokens)
    before = "".join(map(transcript, shown))
    runs = [_Run(p, before + question(p), start=len(before)) for p in problems]
    stop = (_NEXT, f"\n{INTERMEDIATE}") if settings.tool is not None else (_NEXT,)
    for _ in range(settings.max_hops if settings.tool is not None else 1):
        going = [run for run in runs if not run.done]
        _advance(asker, going, settings, settings.max_tokens, stop)
        for run in going:
            _answer_follow_up(asker, run, settings)
    last = [run for run in runs if run.error is None and FINAL not in run.own]
    for run in last:
        run.text = f"{run.text.rstrip()}\n{FINAL}"
    _advance(asker, last, settings, settings.answer_tokens, ("\n",))
    return asker.result("self_ask", [_result(run) for run in runs])


def _advance(
    asker: Asker, runs: Sequence[_Run], settings: ReasonSettings, max_tokens: int, stop: tuple[str, ...]
) -> None:
    """One greedy call for all of them."""
    outputs = asker.greedy([one_message(run.text, settings.chat) for run in runs], max_tokens, stop)
    for run, output in zip(runs, outputs, strict=True):
        if output.completions:
            run.add(output.completions[0])
        else:
            run.done, run.error = True, output.error or "no completion"


def _answer_follow_up(asker: Asker, run: _Run, settings: ReasonSettings) -> None:
    """Put the tool's answer to the follow-up that the transcript ends with; without one the run is done."""
    if run.done:
        return
    line = run.own.rstrip().rsplit("\n", 1)[-1]
    asked = re.match(rf"(?:.*\b)?{FOLLOW}\s*(\S.*)", line)
    if settings.tool is None or asked is None or run.cut or FINAL in run.own:
        run.done = True
        return
    try:
        answer = str(settings.tool(asked.group(1).strip()))
    except Exception as problem:  # a search that fails must not end the other problems
        asker.note(f"the tool failed on {asked.group(1).strip()!r}: {problem!r}")
        answer = f"error: {problem}"
    run.text = f"{run.text.rstrip()}\n{INTERMEDIATE} {' '.join(answer.split())}\n"


def _result(run: _Run) -> ProblemResult:
    _, marked, final = run.own.rpartition(FINAL)
    line = final.strip().split("\n")[0]
    answer = extract_answer(f"answer is {line}", run.problem.kind, run.problem.letters) if marked and line else None
    text = run.own.removeprefix(question(run.problem))
    found = Path(text, answer, None, run.tokens, run.said) if run.said else None
    return single(run.problem, answer, found, run.error)
