"""Families that read: facts to look up, yes or no, stories, and questions that the passage leaves open."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tutelage.schoolroom.lessons import NUMBERS, UNKNOWN, Cast, Lesson, Make, family

KINDS = ("who", "where", "price", "colour", "shop")
VERDICTS = {"yes": ("no", UNKNOWN), "no": ("yes", UNKNOWN)}


@dataclass(frozen=True)
class Fact:
    """One fact, its question with the answer, and the claim "is it so?" with a false variant."""

    statement: str
    question: str
    answer: str
    wrong: str
    claim: str
    false_claim: str

    @property
    def key(self) -> str:
        return self.statement

    def lesson(self, passage: str) -> Lesson:
        """The question about this fact, asked over `passage`."""
        accept = [self.statement]
        if self.question.startswith("what does"):
            accept += [f"{self.answer} coins", f"it costs {self.answer} coins"]
        elif self.question.startswith("wh") and "is " in self.question and "colour" not in self.question:
            accept += [f"in the {self.answer}", f"the {self.answer}"]
        return Lesson(self.question, self.answer, passage, accept=accept, wrong=[self.wrong], key=self.key)


def other(rng: random.Random, options: tuple[str, ...] | list[str], than: str) -> str:
    """One of `options` that is not `than`."""
    while (choice := rng.choice(options)) == than:
        pass
    return choice


def fact(kind: str, rng: random.Random, cast: Cast, name: str, thing: str) -> Fact:
    """A fact of one of KINDS about `name` or `thing`."""
    if kind == "who":
        wrong = other(rng, cast.names, name)
        return Fact(f"{name} has the {thing}", f"who has the {thing}?", name, wrong,
                    f"does {name} have the {thing}?", f"does {wrong} have the {thing}?")
    if kind == "where":
        place = rng.choice(cast.places)
        wrong = other(rng, cast.places, place)
        return Fact(f"{name} is in the {place}", f"where is {name}?", place, wrong,
                    f"is {name} in the {place}?", f"is {name} in the {wrong}?")
    if kind == "price":
        cost = rng.choice(NUMBERS[2:13])
        wrong = other(rng, NUMBERS[2:13], cost)
        return Fact(f"the {thing} costs {cost} coins", f"what does the {thing} cost?", cost, wrong,
                    f"does the {thing} cost {cost} coins?", f"does the {thing} cost {wrong} coins?")
    if kind == "colour":
        shade = rng.choice(cast.colours)
        wrong = other(rng, cast.colours, shade)
        return Fact(f"the {thing} is {shade}", f"what colour is the {thing}?", shade, wrong,
                    f"is the {thing} {shade}?", f"is the {thing} {wrong}?")
    shop = rng.choice(cast.shops)
    wrong = other(rng, cast.shops, shop)
    return Fact(f"the {shop} sells the {thing}", f"which shop sells the {thing}?", shop, wrong,
                f"does the {shop} sell the {thing}?", f"does the {wrong} sell the {thing}?")


def facts(rng: random.Random, cast: Cast, kinds: list[str]) -> list[Fact]:
    """One fact of each kind, about different people and things."""
    n = len(kinds)
    pairs = zip(rng.sample(cast.names, n), rng.sample(cast.things, n))
    return [fact(kind, rng, cast, name, thing) for kind, (name, thing) in zip(kinds, pairs)]


def passage(statements: list[Fact]) -> str:
    """Facts as sentences."""
    return " ".join(f"{f.statement}." for f in statements)


def scene(rng: random.Random, cast: Cast, kind: str) -> tuple[Fact, list[Fact]]:
    """A fact of `kind` to ask for, and the facts of a passage around it: of other kinds (reading) or of its own
    (binding: which of three things has which colour), half each."""
    n = rng.choice((1, 2, 3))
    others = rng.sample([k for k in KINDS if k != kind], n) if rng.random() < 0.5 else [kind] * n
    asked, *told = facts(rng, cast, [kind, *others])
    told.insert(rng.randint(0, len(told)), asked)
    return asked, told


def _look_up(kind: str) -> Make:
    def make(rng: random.Random, cast: Cast) -> Lesson:
        asked, told = scene(rng, cast, kind)
        return asked.lesson(passage(told))

    return make


for _kind in KINDS:
    family(_kind)(_look_up(_kind))


@family("yes_no")
def yes_no(rng: random.Random, cast: Cast) -> Lesson:
    asked, told = scene(rng, cast, rng.choice(KINDS))
    true = rng.random() < 0.5
    answer = "yes" if true else "no"
    return Lesson(asked.claim if true else asked.false_claim, answer, passage(told), wrong=VERDICTS[answer])


@family("not_stated")
def not_stated(rng: random.Random, cast: Cast) -> Lesson:
    """A question in the words of the look-up families about someone the passage does not name."""
    kind = rng.choice(KINDS)
    asked, told = scene(rng, cast, kind)
    told.remove(asked)
    return Lesson(asked.question, UNKNOWN, passage(told), opener="sorry, ", wrong=[asked.answer, told[0].answer],
                  accept=["it is not stated", "the text does not say", "it does not say", "that is not stated"])


@dataclass(frozen=True)
class Story:
    """A told sequence of events and where everything is at its end."""

    text: str
    place: dict[str, str]
    holder: dict[str, str]


def tell(rng: random.Random, cast: Cast, steps: int) -> Story:
    """Two people walk about, find and give things: later events overrule earlier ones."""
    people, things = rng.sample(cast.names, 2), rng.sample(cast.things, 2)
    place: dict[str, str] = {}
    holder: dict[str, str] = {}
    told = []
    for _ in range(steps):
        name, draw = rng.choice(people), rng.random()
        owned = [t for t in things if holder.get(t) == name]
        if owned and draw < 0.5:
            thing, to = rng.choice(owned), people[1 - people.index(name)]
            holder[thing] = to
            told.append(f"{name} gave the {thing} to {to}.")
        elif (free := [t for t in things if t not in holder]) and draw < 0.7:
            holder[free[0]] = name
            told.append(f"{name} found the {free[0]}.")
        else:
            place[name] = other(rng, cast.places, place.get(name, ""))
            told.append(f"{name} went to the {place[name]}.")
    return Story(" ".join(told), place, holder)


@family("story")
def story(rng: random.Random, cast: Cast) -> Lesson:
    """Where someone is, or who has something, when the story ends."""
    seen = tell(rng, cast, rng.randint(2, 4))
    questions = [(f"where is {n} now?", p, other(rng, cast.places, p), f"in the {p}") for n, p in seen.place.items()]
    questions += [(f"who has the {t} now?", n, other(rng, cast.names, n), f"{n} has the {t}")
                  for t, n in seen.holder.items()]
    question, answer, wrong, accepted = rng.choice(questions)
    return Lesson(question, answer, seen.text, accept=[accepted], wrong=[wrong])


@family("two_hop", heldout=True)
def two_hop(rng: random.Random, cast: Cast) -> Lesson:
    """The place of a thing is its owner's place."""
    (name, second), (thing, other_thing) = rng.sample(cast.names, 2), rng.sample(cast.things, 2)
    here, there = rng.sample(cast.places, 2)
    told = [f"{name} has the {thing}.", f"{name} is in the {here}.", f"{second} has the {other_thing}.",
            f"{second} is in the {there}."]
    rng.shuffle(told)
    return Lesson(f"where is the {thing}?", here, " ".join(told), accept=[f"in the {here}", f"the {here}"],
                  wrong=[there])
