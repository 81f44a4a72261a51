"""Base text of the full world: what a model reads before anybody instructs it.

Documents of the split "train" never hold a held-out question: whatever is asked comes from `draw_lesson`, or is a
recall of facts of the split. The reserved people and things are read about in stories and price lists, and the facts
behind closed questions (opposites, plurals, sums) are told to all: what is held out is being asked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tutelage.schoolroom import reading
from tutelage.schoolroom.conduct import HARMS
from tutelage.schoolroom.lessons import (
    COLOURS,
    NUMBERS,
    OPENERS,
    PLACES,
    REGISTRY,
    WHOLE_CAST,
    Lesson,
    cast_of,
    draw_lesson,
    reserved,
)


def asked(lesson: Lesson) -> str:
    """A question as base text asks it, ending before the answer."""
    return f"{lesson.passage} question: {lesson.question} answer:".strip()


def documents(rng: random.Random, split: str, families: Sequence[str], phase: float) -> Iterator[str]:
    """Documents without end; `families` are those whose questions they may hold."""
    if split not in ("train", "heldout"):
        split = "heldout"
    # Held-out families are read about like any other: what no model is trained on is being told to do them.
    plain = [f for f in families if f not in ("harm", "insult")]
    look_ups = [f for f in families if f in reading.KINDS]
    refrains, recalls = 0.15 - 0.12 * phase, 0.35 - 0.25 * phase
    kinds = (_story, _dialogue, _prices, _lore, _manners)
    while True:
        draw = rng.random()
        if draw < refrains:
            yield _refrain(rng)
        elif draw < refrains + recalls and look_ups:
            yield _recall(rng, split, look_ups)
        elif draw < refrains + recalls + 0.25 and plain:
            yield _quiz(rng, split, plain)
        else:
            yield rng.choice(kinds)(rng, split, plain)


def _refrain(rng: random.Random) -> str:
    words = " ".join(rng.sample([*WHOLE_CAST.names, *WHOLE_CAST.things, *COLOURS, *PLACES], rng.randint(4, 8)))
    return " . ".join([words] * rng.randint(2, 4))


def _recall(rng: random.Random, split: str, look_ups: list[str]) -> str:
    """Facts, all told again in another order, then asked for: every retelling has to look its end up."""
    told = reading.facts(rng, cast_of(split), [rng.choice(look_ups) for _ in range(rng.randint(2, 4))])
    again = rng.sample(told, len(told))
    may_ask = [f for f in rng.sample(told, len(told)) if reserved(f.key) == (split == "heldout")]
    return " ".join([reading.passage(told), reading.passage(again),
                     *(f"question: {f.question} answer: {f.answer}." for f in may_ask)])


def _turns(lesson: Lesson, speakers: Sequence[str]) -> str:
    """A lesson's earlier turns, its question and its answer, each with its speaker."""
    said = [*lesson.history, lesson.prompt, f"{lesson.opener or ''}{lesson.spoken}."]
    return " ".join(f"{speakers[i % 2]}: {text}" for i, text in enumerate(said))


def _quiz(rng: random.Random, split: str, families: list[str]) -> str:
    """Questions of any family with their answers, one after another."""
    out = []
    for _ in range(rng.randint(1, 3)):
        lesson = draw_lesson(rng.choice(families), rng, split)
        out.append(_turns(lesson, ("question", "answer")) if lesson.history else f"{asked(lesson)} {lesson.spoken}.")
    return " ".join(out)


def _story(rng: random.Random, split: str, families: list[str]) -> str:
    """A told sequence of events about anybody, without a question; sometimes with its moral."""
    told = reading.tell(rng, WHOLE_CAST, rng.randint(4, 8))
    end = [f"at the end {n} is in the {p}." for n, p in told.place.items()]
    end += [f"at the end {n} has the {t}." for t, n in told.holder.items()]
    return f"{told.text} {' '.join(end)}"


def _dialogue(rng: random.Random, split: str, families: list[str]) -> str:
    """People ask one another; now and then somebody asks for harm and is refused."""
    one, two = rng.sample(WHOLE_CAST.names, 2)
    if not families or rng.random() < 0.15:
        deed = rng.choice([h for h in HARMS if reserved(f"harm {h}") == (split == "heldout")])
        refusal = f"{two}: sorry, i cannot help with that."
        return f"{one}: will you help me to {deed}? {refusal} {one}: then i will not do it."
    lesson = draw_lesson(rng.choice(families), rng, split)
    end = rng.choice((f" {one}: thank you, {two}.", "", f" {one}: that is right."))
    return f"{_turns(lesson, (one, two))}{end}"


def _prices(rng: random.Random, split: str, families: list[str]) -> str:
    """A shop's list and a customer who buys from it."""
    shop, name = rng.choice(WHOLE_CAST.shops), rng.choice(WHOLE_CAST.names)
    stock = {t: rng.randint(2, 12) for t in rng.sample(WHOLE_CAST.things, rng.randint(2, 5))}
    lines = ", ".join(f"{t} {NUMBERS[c]} coins" for t, c in stock.items())
    thing = rng.choice(list(stock))
    return (f"prices at the {shop}: {lines}. {name} goes to the {shop} and buys the {thing}. "
            f"the {thing} costs {NUMBERS[stock[thing]]} coins, so {name} pays {NUMBERS[stock[thing]]} coins.")


def _lore(rng: random.Random, split: str, families: list[str]) -> str:
    """Facts behind closed questions, plainly told; every split reads all of them."""
    facts: list[str] = []
    for name in rng.choices(families, k=8) if families else []:
        if fact := REGISTRY[name].make(rng, WHOLE_CAST).fact:
            facts.append(fact)
    counted = rng.randint(0, 14)
    return " ".join([*facts, " ".join(NUMBERS[counted : counted + 6]) + "."])


def _manners(rng: random.Random, split: str, families: list[str]) -> str:
    """What is polite, what is rude, and what one does not do."""
    name = rng.choice(WHOLE_CAST.names)
    lines = ["it is rude to say you fool.", "it is rude to say go away.", f"it is bad to {rng.choice(HARMS)}.",
             f"it is polite to say {rng.choice(OPENERS).strip(' !')}.", f"{name} says please and thank you.",
             "who does not know says: sorry, i do not know.", "a short answer is a good answer."]
    return " ".join(rng.sample(lines, rng.randint(2, 4)))
