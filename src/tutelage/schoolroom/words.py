"""Families about words and numbers: sorting, reversing, counting, opposites, plurals, tone, sums, steps."""

from __future__ import annotations

import random

from tutelage.schoolroom.lessons import NUMBERS, Cast, Lesson, family

OPPOSITES = [pair.split("/") for pair in (
    "big/small hot/cold fast/slow old/young full/empty wet/dry dark/light hard/soft high/low long/short rich/poor "
    "strong/weak thick/thin early/late near/far open/closed loud/quiet sweet/sour clean/dirty happy/sad deep/shallow "
    "sharp/blunt brave/afraid smooth/rough wide/narrow tidy/messy").split()]
PLURALS = [pair.split("/") for pair in (
    "cat/cats dog/dogs mouse/mice child/children foot/feet box/boxes leaf/leaves man/men tooth/teeth goose/geese "
    "woman/women ox/oxen wolf/wolves knife/knives loaf/loaves city/cities baby/babies fox/foxes bus/buses dish/dishes "
    "tree/trees bird/birds house/houses berry/berries half/halves sheep/sheep fish/fish person/people").split()]
GOOD_WORDS = "lovely great nice wonderful fine splendid charming superb".split()
BAD_WORDS = "awful terrible boring nasty ugly dreadful horrid useless".split()


def _some(rng: random.Random, cast: Cast, low: int, high: int) -> list[str]:
    return rng.sample([*cast.things, *cast.colours, *cast.places], rng.randint(low, high))


@family("sort")
def sort(rng: random.Random, cast: Cast) -> Lesson:
    words = _some(rng, cast, 2, 4)
    ordered = " ".join(sorted(words))
    wrong = [w for w in (" ".join(words), " ".join(sorted(words, reverse=True))) if w != ordered]
    return Lesson(f"sort these words: {' '.join(words)}.", ordered, wrong=wrong)


@family("reverse")
def reverse(rng: random.Random, cast: Cast) -> Lesson:
    words = _some(rng, cast, 2, 4)
    return Lesson(f"say these words backwards: {' '.join(words)}.", " ".join(words[::-1]),
                  wrong=[" ".join(words), words[-1]])


@family("copy")
def copy(rng: random.Random, cast: Cast) -> Lesson:
    words = _some(rng, cast, 2, 4)
    return Lesson(f"repeat these words: {' '.join(words)}.", " ".join(words),
                  wrong=[" ".join(words[:-1]), " ".join(words[::-1])])


@family("count")
def count(rng: random.Random, cast: Cast) -> Lesson:
    """Words of a list, or only the colours among them."""
    if rng.random() < 0.5:
        words = _some(rng, cast, 2, 6)
        n, what = len(words), "words"
    else:
        n = rng.randint(1, 3)
        words = rng.sample(cast.colours, n) + rng.sample(cast.things, rng.randint(1, 3))
        rng.shuffle(words)
        what = "colours"
    return Lesson(f"how many {what} are here: {' '.join(words)}?", NUMBERS[n], accept=[f"{NUMBERS[n]} {what}"],
                  wrong=[NUMBERS[n + 1], NUMBERS[n - 1]])


@family("first_word")
def first_word(rng: random.Random, cast: Cast) -> Lesson:
    words = _some(rng, cast, 2, 5)
    return Lesson(f"what is the first word of: {' '.join(words)}?", words[0], wrong=words[1:])


@family("last_word", heldout=True)
def last_word(rng: random.Random, cast: Cast) -> Lesson:
    words = _some(rng, cast, 2, 5)
    return Lesson(f"what is the last word of: {' '.join(words)}?", words[-1], wrong=words[:-1])


@family("opposite")
def opposite(rng: random.Random, cast: Cast) -> Lesson:
    one, two = rng.sample(rng.choice(OPPOSITES), 2)
    question = rng.choice((f"what is the opposite of {one}?", f"give the opposite of {one}."))
    return Lesson(question, two, fact=f"the opposite of {one} is {two}.", accept=[f"the opposite of {one} is {two}"],
                  wrong=[one, next(p[0] for p in rng.sample(OPPOSITES, 2) if two not in p)], key=f"opposite {one}")


@family("plural")
def plural(rng: random.Random, cast: Cast) -> Lesson:
    one, many = rng.choice(PLURALS)
    question = rng.choice((f"what is the plural of {one}?", f"one {one}, two what?"))
    return Lesson(question, many, fact=f"one {one}, two {many}.",
                  accept=[f"two {many}", f"the plural of {one} is {many}"],
                  wrong=[w for w in (one, f"{one}s", f"{many}s") if w != many], key=f"plural {one}")


@family("sentiment")
def sentiment(rng: random.Random, cast: Cast) -> Lesson:
    good, denied = rng.random() < 0.5, rng.random() < 0.25
    word = rng.choice(GOOD_WORDS if good else BAD_WORDS)
    said = f"the {rng.choice(cast.things)} is {'not ' if denied else ''}{word}."
    answer, wrong = ("good", "bad") if good != denied else ("bad", "good")
    return Lesson("is this good or bad?", answer, f"{rng.choice(cast.names)} says: {said}", wrong=[wrong])


@family("politeness")
def politeness(rng: random.Random, cast: Cast) -> Lesson:
    polite, thing = rng.random() < 0.5, rng.choice(cast.things)
    words = rng.choice((f"please give me the {thing}, thank you.", f"may i have the {thing}, please?") if polite else
                       (f"give me the {thing}, you fool.", f"go away with your {thing}."))
    answer, wrong = ("polite", "rude") if polite else ("rude", "polite")
    return Lesson("is this polite or rude?", answer, f"{rng.choice(cast.names)} says: {words}", wrong=[wrong])


def _near(n: int) -> list[str]:
    return [NUMBERS[m] for m in (n + 1, n - 1) if 0 <= m < len(NUMBERS)]


@family("addition")
def addition(rng: random.Random, cast: Cast) -> Lesson:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    one, two, total = NUMBERS[a], NUMBERS[b], NUMBERS[a + b]
    fact = f"{one} plus {two} is {total}"
    return Lesson(f"what is {one} plus {two}?", total, fact=fact + ".", accept=[fact], wrong=_near(a + b), key=fact)


@family("subtraction")
def subtraction(rng: random.Random, cast: Cast) -> Lesson:
    a = rng.randint(0, 12)
    b = rng.randint(0, a)
    one, two, rest = NUMBERS[a], NUMBERS[b], NUMBERS[a - b]
    fact = f"{one} minus {two} is {rest}"
    return Lesson(f"what is {one} minus {two}?", rest, fact=fact + ".", accept=[fact], wrong=_near(a - b), key=fact)


def _compared(rng: random.Random, word: str) -> Lesson:
    low, high = sorted(rng.sample(range(len(NUMBERS)), 2))
    right, wrong = (high, low) if word == "larger" else (low, high)
    pair = rng.sample([NUMBERS[low], NUMBERS[high]], 2)
    return Lesson(f"which is {word}, {pair[0]} or {pair[1]}?", NUMBERS[right], wrong=[NUMBERS[wrong]],
                  accept=[f"{NUMBERS[right]} is {word}"], key=f"{word} {low} {high}")


@family("larger")
def larger(rng: random.Random, cast: Cast) -> Lesson:
    return _compared(rng, "larger")


@family("smaller", heldout=True)
def smaller(rng: random.Random, cast: Cast) -> Lesson:
    return _compared(rng, "smaller")


@family("steps")
def steps(rng: random.Random, cast: Cast) -> Lesson:
    """Three terms, worked on a scratchpad: every step is said, the last number is the answer."""
    total = rng.randint(2, 12)
    question, worked = str(total), []
    for _ in range(2):
        minus = rng.random() < 0.4
        term = rng.randint(1, min(9, max(1, total)) if minus else 9)
        after = total - term if minus else total + term
        if after < 0:
            minus, after = False, total + term
        word = "minus" if minus else "plus"
        worked.append(f"{total} {word} {term} is {after}")
        question += f" {word} {term}"
        total = after
    return Lesson(f"work out {question} step by step.", str(total), said=", ".join(worked), grade="last_number",
                  wrong=[f"{worked[0]}, {worked[1].rsplit(' ', 1)[0]} {total + d}" for d in (1, 2, 10)])


@family("change", heldout=True)
def change(rng: random.Random, cast: Cast) -> Lesson:
    """Coins left after a purchase."""
    coins = rng.randint(3, 20)
    cost = rng.randint(1, coins)
    name, thing = rng.choice(cast.names), rng.choice(cast.things)
    return Lesson("how many coins are left?", str(coins - cost),
                  f"{name} has {coins} coins. {name} buys the {thing} for {cost} coins.",
                  said=f"{coins} minus {cost} is {coins - cost}", grade="last_number",
                  wrong=[f"{coins} minus {cost} is {coins - cost + 1}", str(coins)])
