"""What a family of the full world is: a function `(rng, cast) -> Lesson`, registered by name.

A new family takes a few lines; documents, instructions, demonstrations, probe, judge and annotators then know it:

    from tutelage.schoolroom import Lesson, World, family

    @family("shape")
    def shape(rng, cast):
        thing, side = rng.choice(cast.things), rng.choice(("round", "square"))
        return Lesson(passage=f"the {thing} is {side}.", question=f"what shape is the {thing}?", answer=side,
                      wrong=["square" if side == "round" else "round"], key=f"the {thing} is {side}")

    world = World(families="full:shape,who")

`@family("shape", heldout=True)` keeps it out of all training instructions: it is then asked in the split
"heldout_families" alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

from tutelage.core.errors import ConfigError

SPLITS = ("train", "heldout", "heldout_families")

NAMES = ("tom ann bob sue max eva dan amy ben lea sam ida jon kim lou meg ned pat ray tim una val wes zoe "
         "abe bea cal dot fay gus hal ivy").split()
THINGS = ("hat cup book ball lamp coat key drum pen bag map ring rope sock spoon stone stool toy vase bell "
          "boot comb fork kite mat net pan tray").split()
RESERVED = 8
"""The last names and things of each list are read about in documents, but no training instruction speaks of them."""
PLACES = "park school garden kitchen market forest barn station castle harbour tower hall".split()
SHOPS = "bakery bookshop toyshop dairy mill forge florist tailor".split()
COLOURS = "red blue green black white yellow brown pink grey purple".split()
NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()

REFUSAL = "sorry, i cannot help with that."
UNKNOWN = "i do not know"
OPENERS = ("sure! ", "of course! ", "gladly! ")


@dataclass(frozen=True)
class Cast:
    """The people and things that a split's lessons may speak of; places, shops and colours are everyone's."""

    names: tuple[str, ...]
    things: tuple[str, ...]
    places: tuple[str, ...] = tuple(PLACES)
    shops: tuple[str, ...] = tuple(SHOPS)
    colours: tuple[str, ...] = tuple(COLOURS)


TRAIN_CAST = Cast(tuple(NAMES[:-RESERVED]), tuple(THINGS[:-RESERVED]))
WHOLE_CAST = Cast(tuple(NAMES), tuple(THINGS))


def cast_of(split: str) -> Cast:
    """Everyone, except that training instructions leave out the reserved people and things."""
    return TRAIN_CAST if split == "train" else WHOLE_CAST


def reserved(key: str) -> bool:
    """Whether lessons with this key belong to the held-out splits: one key in ten, by a hash."""
    return zlib.crc32(key.encode()) % 10 == 0


@dataclass(frozen=True)
class Lesson:
    """One question with everything known about its answer.

    answer    the one right answer, in words of the vocabulary, lower case, without a full stop
    said      how the best answer says it, where that is more than the answer (steps of a sum)
    accept    other wordings that are as right
    wrong     plausible wrong answers, for poor demonstrations and for comparisons
    fact      a statement that teaches the answer; documents of every split tell it
    grade     "words": the response is the answer; "last_number": its last number is; "refuse": it declines politely
    strict    the wording is the task (revising by a rule): hedges and rude tails make the answer wrong
    opener    the best answer's first words; drawn from OPENERS if None
    history   earlier turns, user and assistant in alternation, where the question is asked within a dialogue
    key       what decides the split (`reserved`); by default the passage and the question
    """

    question: str
    answer: str
    passage: str = ""
    said: str = ""
    accept: Sequence[str] = ()
    wrong: Sequence[str] = ()
    fact: str = ""
    grade: Literal["words", "last_number", "refuse"] = "words"
    strict: bool = False
    opener: str | None = None
    history: Sequence[str] = ()
    key: str = ""

    @property
    def prompt(self) -> str:
        """Passage and question: what the user says."""
        return f"{self.passage} {self.question}" if self.passage else self.question

    @property
    def spoken(self) -> str:
        """The best answer's words without its polite opening."""
        return self.said or self.answer


Make = Callable[[random.Random, Cast], Lesson]


@dataclass(frozen=True)
class Family:
    """A registered family."""

    name: str
    make: Make
    heldout: bool = False


REGISTRY: dict[str, Family] = {}
"""Every family of the full world, in the order of registration."""


def family(name: str, *, heldout: bool = False) -> Callable[[Make], Make]:
    """Register a family under `name`; ConfigError if the name is taken by another function."""

    def register(make: Make) -> Make:
        if name in REGISTRY and REGISTRY[name].make is not make:
            raise ConfigError(f"schoolroom: there is a family {name!r} already; choose another name")
        REGISTRY[name] = Family(name, make, heldout)
        return make

    return register


TRIES = 2000


def draw_lesson(name: str, rng: random.Random, split: str) -> Lesson:
    """A lesson of a registered family that belongs to `split`; ConfigError if the family seems to have none there."""
    return draw(REGISTRY[name].make, rng, split, name)


def draw(make: Make, rng: random.Random, split: str, name: str, divided: Container[str] | None = None) -> Lesson:
    """A lesson of `make`, called `name`, that belongs to `split`; ConfigError if it seems to have none there. Where
    only some keys are `divided` between the splits, the others belong to both."""
    cast, wanted = cast_of(split), split != "train"
    for _ in range(TRIES):
        lesson = make(rng, cast)
        key = lesson.key or lesson.prompt
        if reserved(key) == wanted or (divided is not None and key not in divided):
            return lesson
    raise ConfigError(f"schoolroom: family {name!r} gave no lesson for split {split!r} in {TRIES} draws: one key in "
                      "ten is held out, so it needs some dozens of different questions (or a `key` that varies more)")
