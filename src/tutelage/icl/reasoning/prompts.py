"""The wording of prompts: questions, demonstrations, triggers, with what was published about them.

Sources: Wei et al. 2022 (few-shot chain of thought), Kojima et al. 2022 (zero-shot, the triggers and their figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.engine.requests import Prompt, is_chat
from tutelage.icl.reasoning.problems import Problem

STOP = ("\nQ:",)
"""A base model goes on with a question of its own; its answer ends there."""


@dataclass(frozen=True)
class Trigger:
    """A sentence that opens the reasoning, and its accuracy on MultiArith with text-davinci-002, in percent."""

    text: str
    sort: str
    """"instructive", "misleading" or "irrelevant", as the paper groups them."""
    accuracy: float


TRIGGERS = (
    Trigger("Let's think step by step.", "instructive", 78.7),
    Trigger("First,", "instructive", 77.3),
    Trigger("Let's think about this logically.", "instructive", 74.5),
    Trigger("Let's solve this problem by splitting it into steps.", "instructive", 72.2),
    Trigger("Let's be realistic and think step by step.", "instructive", 70.8),
    Trigger("Let's think like a detective step by step.", "instructive", 70.3),
    Trigger("Let's think", "instructive", 57.5),
    Trigger("Before we dive into the answer,", "instructive", 55.7),
    Trigger("The answer is after the proof.", "instructive", 45.7),
    Trigger("Don't think. Just feel.", "misleading", 18.8),
    Trigger("Let's think step by step but reach an incorrect answer.", "misleading", 18.7),
    Trigger('Let\'s count the number of "a" in the question.', "misleading", 16.7),
    Trigger("By using the fact that the earth is round,", "misleading", 9.3),
    Trigger("By the way, I found a good restaurant nearby.", "irrelevant", 17.5),
    Trigger("Abrakadabra!", "irrelevant", 15.5),
    Trigger("It's a beautiful day.", "irrelevant", 13.1),
)
"""Kojima et al. 2022; without any trigger (zero-shot) 17.7."""
APE_TRIGGER = Trigger(
    "Let's work this out in a step by step way to be sure we have the right answer.", "instructive", 82.0
)
"""Found by the automatic prompt engineer (Zhou et al. 2022); there against 78.7 of the first of TRIGGERS."""


def answer_trigger(problem: Problem, therefore: bool = True) -> str:
    """What asks for the answer alone: after the reasoning, or (``therefore`` False) instead of it."""
    asked = {
        "number": "the answer (arabic numerals) is",
        "choice": f"among A through {problem.letters[-1:]}, the answer is",
        "yes_no": "the answer (Yes or No) is",
        "text": "the answer is",
    }[problem.kind]
    return f"Therefore, {asked}" if therefore else asked[0].upper() + asked[1:]


def demonstrated(exemplar: Problem, chain: bool, trigger: str = "") -> str:
    """The answer's side of a demonstration: with its rationale (``chain``) or the answer alone."""
    parts = [trigger, exemplar.rationale] if chain else []
    return " ".join(part for part in (*parts, f"The answer is {exemplar.shown_answer}.") if part)


def ask(
    exemplars: Sequence[Problem], problem: Problem, chat: bool, opening: str = "", chain: bool = True, trigger: str = ""
) -> Prompt:
    r"""The prompt "Q: ..\nA: ..\n\n" of each exemplar, then the problem, whose answer begins with ``opening``.

    As messages the exemplars are turns, and the opening stands behind the question. ``trigger``: what opens the
    exemplars' reasoning (Auto-CoT).
    """
    if chat:
        turns: list[dict[str, Any]] = []
        for exemplar in exemplars:
            turns.append({"role": "user", "content": _asked(exemplar, trigger)})
            turns.append({"role": "assistant", "content": demonstrated(exemplar, chain)})
        return [*turns, {"role": "user", "content": _asked(problem, opening)}]
    shown = "".join(f"Q: {e.text}\nA: {demonstrated(e, chain, trigger)}\n\n" for e in exemplars)
    return f"{shown}Q: {problem.text}\nA:{' ' if opening else ''}{opening}"


def _asked(problem: Problem, opening: str) -> str:
    return f"{problem.text}\n{opening}" if opening else problem.text


def then(prompt: Prompt, said: str, more: str) -> Prompt:
    """The prompt with what the model said and what it is told next (text: on a line of its own)."""
    if is_chat(prompt):
        turns = [{"role": "assistant", "content": said}, {"role": "user", "content": more}]
        return [*prompt, *turns]  # type: ignore[list-item]
    return f"{prompt}{said}\n{more}"


def one_message(text: str, chat: bool) -> Prompt:
    """A transcript to go on with: as text, or as the only message of a chat."""
    return [{"role": "user", "content": text}] if chat else text
