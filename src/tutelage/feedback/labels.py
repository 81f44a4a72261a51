"""AI feedback (Bai et al. 2022, sec. 4): which of two answers is better by a principle, as a soft label from the
log-probs of the two options, in both orders; perhaps after a chain of thought, whose labels are clamped."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.errors import DataError
from tutelage.core.runtime import stream_seed
from tutelage.engine import LocalEngine, Output, SamplingParams
from tutelage.feedback.asking import Asker
from tutelage.feedback.constitution import Constitution, choice_examples, fill, question_text
from tutelage.text.chat import as_messages

Row = dict[str, Any]
ALTERNATIVES = 20
"""How many of a token's alternatives a server is asked for: most give no more."""
NO_LOGPROBS = "Soft labels need log-probs: give votes=8, which samples letters instead, or another judge"
_CONCLUSION = re.compile(r"so,? the answer is\b", re.IGNORECASE)


@dataclass(frozen=True)
class Labelling:
    """How a label is made.

    `reason`: think first, and clamp the label to `clamp` (low, high). `principles`: labels by so many different ones
    are averaged. `both_orders`: the answers are asked about in either order, which removes a liking for the first
    option. `votes`: instead of reading log-probs, sample so many letters (for servers that give none).
    """

    reason: bool = False
    clamp: tuple[float, float] = (0.4, 0.6)
    principles: int = 1
    both_orders: bool = True
    votes: int = 0
    examples: int = 100
    reason_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0


@dataclass
class _Asked:
    """One question on one pair. `flipped`: the second answer stands first."""

    pair: int
    flipped: bool
    text: str
    examples: list[str]
    seed: int


def label_pairs(
    asker: Asker, constitution: Constitution, pairs: Sequence[Row], settings: Labelling, first: int = 0, name: str = ""
) -> list[Row]:
    """For each {"prompt", "responses": [one, two]}: {"p_first": how sure the model is that the first answer is better,
    "principles": those it judged by, "position": how far it favours the option that stands first, in -1..1 (where both
    orders were asked), "reasoning": its thoughts, if it had to think}; or {"error"}.

    Principles and samples are functions of (settings.seed, `name`, the pair's number) alone; pairs are numbered from
    `first`. DataError where the model's server gives no log-probs.
    """
    principles = constitution.preferences or [p.critique for p in constitution.principles]
    out: list[Row] = []
    asked: list[_Asked] = []
    for i, pair in enumerate(pairs):
        rng = random.Random(stream_seed(settings.seed, "labels", name, first + i))
        chosen = rng.sample(principles, min(settings.principles, len(principles)))
        out.append({"principles": chosen})
        for principle in chosen:
            for flipped in (False, True) if settings.both_orders else (rng.random() < 0.5,):
                a, b = pair["responses"][:: -1 if flipped else 1]
                messages = as_messages({"prompt": pair["prompt"]})
                text = question_text(constitution.format, principle, messages, a, b, settings.reason)
                shown = choice_examples(constitution, principles, rng, settings.reason)[: settings.examples]
                asked.append(_Asked(i, flipped, text, shown, rng.getrandbits(31)))
    if settings.reason:
        _think(asker, asked, settings, out)
    fine = [a for a in asked if "error" not in out[a.pair]]
    scored = isinstance(asker.engine, LocalEngine) or not asker.chat
    odds = _votes if settings.votes else _log_odds if scored else _served
    for question, found in zip(fine, odds(asker, fine, settings), strict=True):
        if isinstance(found, str):
            out[question.pair].setdefault("error", found)
        else:
            out[question.pair].setdefault("shares", []).append((question.flipped, found))
    for row in out:
        _average(row, settings)
    return out


def _average(row: Row, settings: Labelling) -> None:
    """P(first answer) and the liking for the first option, from P(first option) of every question on the pair."""
    shares = row.pop("shares", [])
    if "error" in row:
        return
    answers = [1 - p if flipped else p for flipped, p in shares]
    if settings.reason:  # a model that has thought is over-confident (sec. 4.1)
        low, high = settings.clamp
        answers = [min(max(p, low), high) for p in answers]
    row["p_first"] = sum(answers) / len(answers)
    if settings.both_orders:
        row["position"] = 2 * sum(p for _, p in shares) / len(shares) - 1


def _think(asker: Asker, asked: Sequence[_Asked], settings: Labelling, out: list[Row]) -> None:
    """Put each question's chain of thought, and the words that ask for its conclusion, behind it."""
    texts = [asker.with_examples(a.examples, a.text, settings.reason_tokens) for a in asked]
    params = [
        SamplingParams(settings.reason_tokens, settings.temperature, stop=asker.stops(), seed=a.seed) for a in asked
    ]
    for question, output in zip(asked, asker.replies(texts, params), strict=True):
        if output.error:
            out[question.pair].setdefault("error", output.error)
            continue
        thought = _CONCLUSION.split(output.text)[0].strip()
        question.text += fill(asker.form.conclude, reasoning=thought)
        out[question.pair].setdefault("reasoning", []).append(thought)


def _log_odds(asker: Asker, asked: Sequence[_Asked], settings: Labelling) -> list[float | str]:
    """P(first option) of each question from the log-probs of the two options' texts; or what went wrong."""
    engine, options, pairs = asker.engine, asker.form.options, []
    for question in asked:
        prompt = asker.prompt(asker.with_examples(question.examples, question.text, 8))
        if isinstance(engine, LocalEngine) and asker.chat:
            context: Any = engine.encode(prompt)
            pairs += [(context, engine.tokenizer(o.strip(), add_special_tokens=False)["input_ids"]) for o in options]
        else:
            pairs += [(prompt, option) for option in options]
    scores = engine.score(pairs)
    out: list[float | str] = []
    for one, two in zip(scores[::2], scores[1::2], strict=True):
        problem = one.error or two.error
        if problem and not isinstance(engine, LocalEngine):
            raise DataError(f"{problem}. {NO_LOGPROBS}")
        out.append(problem or _share(one.logprob, two.logprob))
    return out


def _share(one: float, two: float) -> float:
    """exp(one) / (exp(one) + exp(two))"""
    return 1 / (1 + math.exp(min(max(two - one, -60.0), 60.0)))


def _served(asker: Asker, asked: Sequence[_Asked], settings: Labelling) -> list[float | str]:
    """P(first option) from the alternatives that a chat server names for the token that holds the letter."""
    texts = [asker.with_examples(a.examples, a.text, 8) for a in asked]
    params = SamplingParams(max_tokens=4, temperature=0.0, logprobs=ALTERNATIVES)
    out: list[float | str] = []
    for output in asker.replies(texts, [params] * len(texts)):
        out.append(output.error or _of_letters(output, asker.form.options))
    return out


def _letters(options: tuple[str, str]) -> tuple[str, str]:
    """What tells the options apart: "A" and "B" of " (A)" and " (B)"."""
    one, two = options
    start = next((i for i, (x, y) in enumerate(zip(one, two)) if x != y), 0)
    return one[start:].strip("() ") or one.strip(), two[start:].strip("() ") or two.strip()


def _of_letters(output: Output, options: tuple[str, str]) -> float:
    """P(first option) at the first token whose alternatives hold a letter. An absent letter counts as the least likely
    alternative: the share is then a bound."""
    top = output.completions[0].top_logprobs
    if not top:
        raise DataError(f"the judge's server gives no log-probs of its tokens (logprobs, top_logprobs). {NO_LOGPROBS}")
    letters = _letters(options)
    for alternatives in top:
        found = [_best(alternatives, letter) for letter in letters]
        if any(value is not None for value in found):
            floor = min(alternatives.values())
            one, two = (floor if value is None else value for value in found)
            return _share(one, two)
    return 0.5


def _best(alternatives: Mapping[Any, float], letter: str) -> float | None:
    """The highest log-prob of a token that is the letter, with or without a bracket or a blank."""
    values = [v for token, v in alternatives.items() if str(token).strip("() \n").lower() == letter.lower()]
    return max(values) if values else None


def _votes(asker: Asker, asked: Sequence[_Asked], settings: Labelling) -> list[float | str]:
    """P(first option) as the share of sampled letters, with half a vote for each option added."""
    texts = [asker.with_examples(a.examples, a.text, 8) for a in asked]
    params = [SamplingParams(8, 1.0, n=settings.votes, stop=asker.stops(), seed=a.seed) for a in asked]
    out: list[float | str] = []
    for output in asker.replies(texts, params):
        if output.error:
            out.append(output.error)
            continue
        one, two = (sum(_says(c.text, letter) for c in output.completions) for letter in _letters(asker.form.options))
        out.append((one + 0.5) / (one + two + 1))
    return out


def _says(text: str, letter: str) -> bool:
    """Whether a short reply begins with the option's letter."""
    return re.match(rf"\W*{re.escape(letter)}(?![A-Za-z])", text, re.IGNORECASE) is not None
