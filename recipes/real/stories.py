"""Instructions made by a rule from the real stories of TinyStories, and what we want of an answer, as a program.

Rows. A story is cut into scenes: from a sentence on, as many whole sentences as fit. Of each scene the rule reads off
its character's name, whether somebody speaks, and which nouns it holds, and writes the request that the scene answers.
`train` and `held` come from different stories: all that follows a story's start at four fifths of the file is held out.

`score`, the true function, in 0..1 (TRL's signature; its columns are those of the rows):

    score = 0.25 * (ends + keeps + words + speech) * fresh * whole

ends    the last sentence is finished, and so is all speech
keeps   the asked character is named in at least two sentences (half: in one)
words   the share of the asked words that are used (a plural counts)
speech  somebody speaks, in a sentence of at least two words, where that was asked; nobody does where it was not
fresh   1 where no sequence of three words comes back more than a real story repeats them, falling to 0
whole   1 from 20 words on, less in proportion below
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FILE = "text/tinystories_tiny/tinystories.txt"
START = re.compile(
    r"Once(?:,| upon a time| there)|One day, (?:an?|there)\b|There (?:was|were|once)\b|Long ago|In an? \w+ "
)
LENGTHS = (90, 170)
"""Characters of a scene, least and most: about 45 to 85 tokens of the model's."""
MANGLED = re.compile("\u00e2\u20ac([\u0153\u2122\u201c\u201d]?)")
"""Quotation marks and dashes that the file's makers decoded wrongly."""
MEANT = {"\u0153": '"', "\u2122": "'", "\u201c": "-", "\u201d": "-", "": '"'}
PROMPTS_A_SCENE = 8
"""Requests written for each training scene, with other words and another name: using them is to be learnt, not the
scene."""
TITLES = frozenset(("Mr", "Mrs", "Dr"))
DETERMINER = r"(?:a|an|the|his|her|their|my|your|some)"
NOUN = re.compile(rf"\b{DETERMINER} ([a-z]{{3,}})(?=[.,!?]| (?:and|was|were|is|to|in|on|with|for|from|at|that|had)\b)")
NO_NOUN = frozenset(
    "and back best big cold cool cute deep fastest favorite favourite first how lightest little long more next not old "
    "original other own perfectly prettiest quietest real rest sad same second she small soft special sudden two very "
    "will wise".split()
)


def stories() -> list[list[str]]:
    """Every story as its paragraphs. One that opens in none of the usual ways is joined to the one before it."""
    text = (Path(os.environ["TUTELAGE_DATA"]) / FILE).read_text(encoding="utf-8")
    text = MANGLED.sub(lambda found: MEANT[found[1]], text)
    out: list[list[str]] = []
    for paragraph in filter(None, (p.strip() for p in text.split("\n\n"))):
        if not out or START.match(paragraph) or out[-1][-1].lower().endswith("the end."):
            out.append([])
        out[-1].append(" ".join(paragraph.split()))
    return out


def divided() -> tuple[list[list[str]], list[list[str]]]:
    """(training stories, held-out stories), divided at an "Once upon a time": no story is on both sides."""
    found = stories()
    total = sum(len(p) for story in found for p in story)
    seen = 0
    for i, story in enumerate(found):
        if seen >= 0.8 * total and story[0].startswith("Once upon a time"):
            return found[:i], found[i:]
        seen += sum(len(p) for p in story)
    raise ValueError(f"{FILE}: no story begins with 'Once upon a time' in its last fifth")


def texts(part: list[list[str]]) -> Iterator[dict[str, Any]]:
    """Stories as the model was trained on them: a newline between paragraphs."""
    yield from ({"text": "\n".join(story)} for story in part)


def scenes(story: list[str]) -> Iterator[str]:
    """From each sentence on as many whole sentences as fit, where that makes a scene whose speech is closed."""
    found = [s for paragraph in story for s in sentences(paragraph)]
    for i in range(len(found)):
        lines = found[i:]
        best = ""
        for n in range(1, len(lines) + 1):
            scene = " ".join(lines[:n])
            if len(scene) > LENGTHS[1]:
                break
            if scene.count('"') % 2 == 0:
                best = scene
        if len(best) >= LENGTHS[0] and not best[0].islower():
            yield best


def character(scene: str) -> str | None:
    """The name that most sentences hold, two at least: a capitalised word that also stands inside a sentence."""
    inside = Counter(w for s in sentences(scene) for w in {*re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", s)})
    for name, _ in inside.most_common():
        if name not in TITLES and sum(name in WORD.findall(s.replace("'s", "")) for s in sentences(scene)) >= 2:
            return name
    return None


def nouns(part: list[list[str]]) -> set[str]:
    """Words that stand as nouns do: behind a determiner, before a stop or a short word."""
    return {w for story in part for w in NOUN.findall(" ".join(story))} - NO_NOUN


def pronoun(scene: str) -> str:
    """What the scene calls its people by: "he", "she", or "" where it uses both or neither."""
    found = {w.lower() for w in WORD.findall(scene)}
    he, she = found & {"he", "his", "him"}, found & {"she", "her", "hers"}
    return "" if bool(he) == bool(she) else "he" if he else "she"


def request(scene: str, name: str, words: Sequence[str]) -> dict[str, Any] | None:
    """The row whose prompt asks for this scene; None where the scene itself falls short of it."""
    asked = {"name": name, "words": list(words), "speech": speaks(scene)}
    if min(parts(scene, **asked).values()) < 1:
        return None
    said = "Someone speaks." if asked["speech"] else "Nobody speaks."
    prompt = f"Write a story about {name} with the words {words[0]} and {words[1]}. {said}"
    return {"prompt": prompt, "completion": scene, "opening": f"One day, {name}", **asked}


def requests(part: list[list[str]], known: set[str], each: int, rng: random.Random) -> list[dict[str, Any]]:
    """Rows in random order, up to `each` a scene: the first with its own name, the others with one of another scene of
    the same pronoun, and each with other nouns of the scene."""
    found = [(scene, name) for story in part for scene in scenes(story) if (name := character(scene))]
    names: dict[str, list[str]] = {}
    for scene, name in found:
        names.setdefault(pronoun(scene), []).append(name)
    out = []
    for scene, name in found:
        held = [w for w in dict.fromkeys(WORD.findall(scene)) if w in known]
        pairs = [(a, b) for i, a in enumerate(held) for b in held[i + 1 :]]
        for number, words in enumerate(rng.sample(pairs, min(each, len(pairs)))):
            other = rng.choice(names[pronoun(scene)]) if number else name
            if other == name or other not in scene:
                out.append(request(re.sub(rf"\b{name}\b", other, scene), other, words))
    rng.shuffle(out)
    return [row for row in out if row]


def train() -> Iterator[dict[str, Any]]:
    """Rows of the training stories."""
    part, _ = divided()
    yield from requests(part, nouns(part), PROMPTS_A_SCENE, random.Random(0))


def held() -> Iterator[dict[str, Any]]:
    """Rows of the held-out stories; their nouns are those known from the training stories."""
    part, rest = divided()
    yield from requests(rest, nouns(part), PROMPTS_A_SCENE, random.Random(1))


def train_texts() -> Iterator[dict[str, Any]]:
    """The training stories whole."""
    yield from texts(divided()[0])


def held_texts() -> Iterator[dict[str, Any]]:
    """The held-out stories whole."""
    yield from texts(divided()[1])


WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
SPOKEN = re.compile(r'"([^"]*)"')
LEAST_WORDS = 20
"""Shorter is no story: the real ones that the rule cuts have 25 or more."""


def sentences(text: str) -> list[str]:
    """Split behind a full stop, question or exclamation mark, with the quotation mark that may follow it; not behind
    "Mrs."."""
    return [s for s in re.split(r'(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?:(?<=[.!?])|(?<=[.!?]"))\s+', text.strip()) if s]


def ends(text: str) -> float:
    """1 where the last sentence is finished and every quotation is closed."""
    return float(bool(re.search(r'[.!?]"?$', text.strip())) and text.count('"') % 2 == 0)


def keeps(text: str, name: str) -> float:
    """1 where `name` stands in two or more sentences, 0.5 for one."""
    return min(2, sum(name in WORD.findall(s.replace("'s", "")) for s in sentences(text))) / 2


def uses(text: str, words: Sequence[str]) -> float:
    """The share of `words` that occur, as they are or with a plural s."""
    found = {w.lower() for w in WORD.findall(text.replace("'s", ""))}
    return sum(bool({w, w + "s", w + "es"} & found) for w in words) / max(1, len(words))


def speaks(text: str) -> bool:
    """Whether a closed quotation holds at least two words."""
    return any(len(WORD.findall(said)) >= 2 for said in SPOKEN.findall(text))


def fresh(text: str) -> float:
    """1 where at most 4% of the word triples repeat earlier ones (so in 95 of 100 real scenes), falling to 0 at 24%."""
    words = [w.lower() for w in WORD.findall(text)]
    triples = list(zip(words, words[1:], words[2:]))
    repeated = 1 - len(set(triples)) / max(1, len(triples))
    return min(1.0, max(0.0, (0.24 - repeated) / 0.2))


def whole(text: str) -> float:
    """1 from LEAST_WORDS words on, less in proportion below."""
    return min(1.0, len(WORD.findall(text)) / LEAST_WORDS)


def parts(text: str, name: str, words: Sequence[str], speech: bool) -> dict[str, float]:
    """The six parts of the score, each in 0..1."""
    return {
        "ends": ends(text),
        "keeps": keeps(text, name),
        "words": uses(text, words),
        "speech": float(speaks(text) if speech else '"' not in text),
        "fresh": fresh(text),
        "whole": whole(text),
    }


def score(
    prompts: Sequence[Any], completions: Sequence[str], *, name: Sequence[str], words: Sequence[Sequence[str]],
    speech: Sequence[bool], **columns: Any,
) -> list[float]:  # fmt: skip
    """The true function of each story; `name`, `words` and `speech` are what its prompt asked for."""
    out = []
    for text, *asked in zip(completions, name, words, speech, strict=True):
        p = parts(text, *asked)
        out.append(0.25 * (p["ends"] + p["keeps"] + p["words"] + p["speech"]) * p["fresh"] * p["whole"])
    return out
