"""Tasks that plain text sets itself (Chen et al. 2022, section 3): pure functions of (sentences, generator).

Each takes some consecutive sentences and gives an input and the output that is to be predicted. Examples of one kind,
one behind another, make a training sequence for in-context learning (icl/metatraining.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from tutelage.core.errors import DataError

Objective = Literal["next_sentence", "masked_word", "last_phrase", "classification"]
OBJECTIVES: tuple[Objective, ...] = ("next_sentence", "masked_word", "last_phrase", "classification")
SYMBOLS = ("___", "<<>>", "@@@", "(())", "$$$", "%%%", "###", "***", "+++")
"""What may stand for masked words; one of them in an example."""
MOST_MASKED = 20
LEAST_SENTENCES, MOST_SENTENCES = 3, 5
"""Consecutive sentences of an example: three or more in the paper, which gives no upper limit."""
FUNCTION_WORDS = frozenset(
    "a an the this that these those my your his her its our their some any no each every and or but nor so yet if "
    "because while when where who whom which what how than as of in on at by to from with for about into over under "
    "after before between through during against is are was were be been being am do does did has have had can could "
    "will would shall should may might must not i you he she it we they me him us them there here".split()
)
"""Where a phrase may begin."""
KINDS = ("original", "shuffled", "other", "mixed")
"""Inputs of a classification: as they stand; in another order; all of another document; half of them of another."""
VERDICTS = ("True", "False")
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


class Pair(NamedTuple):
    """An example: what is read and what is to be predicted."""

    input: str
    output: str


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their full stops, question and exclamation marks and by line breaks."""
    return [part.strip() for part in _END.split(text) if part.strip()]


def window(document: Sequence[str], rng: np.random.Generator) -> list[str]:
    """3 to 5 consecutive sentences of a document of at least 3."""
    size = min(len(document), int(rng.integers(LEAST_SENTENCES, MOST_SENTENCES + 1)))
    start = int(rng.integers(len(document) - size + 1))
    return list(document[start : start + size])


def next_sentence(text: Sequence[str], rng: np.random.Generator) -> Pair:
    """The last sentence from those before it."""
    return Pair(" ".join(text[:-1]), text[-1])


def masked_word(text: Sequence[str], rng: np.random.Generator) -> Pair | None:
    """1 to 20 words, at most half of them all, replaced by one symbol; the output is these words in order. Words are
    what blanks separate: None for a text of a single one."""
    words = " ".join(text).split()
    if len(words) < 2:
        return None
    count = int(rng.integers(1, min(MOST_MASKED, len(words) // 2) + 1))
    places = np.sort(rng.permutation(len(words))[:count])
    output = " ".join(words[i] for i in places)
    symbol = SYMBOLS[rng.integers(len(SYMBOLS))]
    for i in places:
        words[i] = symbol
    return Pair(" ".join(words), output)


def split_phrase(sentence: str) -> tuple[str, str] | None:
    """(beginning, last phrase): from the last function word on, or None for a sentence that has none behind its first
    word. The closing mark belongs to neither."""
    words = sentence.rstrip(".!?。！？ ").split()
    for i in range(len(words) - 1, 0, -1):
        if words[i].lower().strip(",;:\"'()") in FUNCTION_WORDS:
            return " ".join(words[:i]), " ".join(words[i:])
    return None


def last_phrase(text: Sequence[str], rng: np.random.Generator, choose: bool, other: Sequence[str]) -> Pair | None:
    """The last sentence asked for its last phrase; with `choose`, whether a phrase that is given is the right one.

    In half of the latter it is the last phrase of `other`. None where a sentence has no such phrase.
    """
    parts = split_phrase(text[-1])
    if parts is None:
        return None
    asked = " ".join([*text[:-1], f"Question: {parts[0]}?"])
    if not choose:
        return Pair(asked, f"Answer: {parts[1]}")
    wrong = split_phrase(other[-1])
    if wrong is None or wrong[1] == parts[1]:
        return None
    right = bool(rng.integers(2))
    return Pair(f"{asked} Answer: {parts[1] if right else wrong[1]}", VERDICTS[not right])


def arranged(text: Sequence[str], kind: str, other: Sequence[str], rng: np.random.Generator) -> str:
    """The input of a classification: see KINDS. `other`: sentences of another document, at least as many as needed."""
    if kind == "original":
        return " ".join(text)
    if kind == "shuffled":
        order = rng.permutation(len(text))
        while (order == np.arange(len(text))).all():
            order = rng.permutation(len(text))
        return " ".join(text[i] for i in order)
    if kind == "other":
        return " ".join(other)
    mixed = list(text)
    for place, sentence in zip(np.sort(rng.permutation(len(text))[: (len(text) + 1) // 2]), other):
        mixed[place] = sentence
    return " ".join(mixed)


class SelfSupervised:
    """Draws examples of one kind from documents. DataError where fewer than two have three sentences."""

    def __init__(self, documents: Sequence[str], where: str) -> None:
        split = (sentences(text) for text in documents)
        self.documents = [parts for parts in split if len(parts) >= LEAST_SENTENCES]
        if len(self.documents) < 2:
            found = f"{len(self.documents)} documents of {LEAST_SENTENCES} sentences or more"
            raise DataError(f"{where}: {found}; expected at least 2 (a text file's documents are its paragraphs)")
        words = {word for text in self.documents[:200] for line in text for word in line.split() if word.isalpha()}
        self.words = sorted(words) if len(words) >= len(KINDS) else list("ABCD")

    def windows(self, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """Sentences of two documents."""
        own, other = rng.choice(len(self.documents), 2, replace=False)
        return window(self.documents[own], rng), window(self.documents[other], rng)

    def examples(self, objective: Objective, count: int, rng: np.random.Generator) -> list[Pair]:
        """`count` examples of one kind: of last_phrase all generate or all judge, of classification all share the same
        two or three kinds of input and the words that name them, drawn from the text anew at every call."""
        if objective == "classification":
            return self._classified(count, rng)
        choose = bool(rng.integers(2))
        out: list[Pair] = []
        for _ in range(100 * count):
            text, other = self.windows(rng)
            made = (
                last_phrase(text, rng, choose, other) if objective == "last_phrase"
                else next_sentence(text, rng) if objective == "next_sentence" else masked_word(text, rng)
            )  # fmt: skip
            out += [made] if made else []
            if len(out) == count:
                return out
        raise DataError(f"objective={objective}: hardly any passage of the text has what it asks for (blanks between "
                        "words, an English function word in the last sentence); choose another objective")  # fmt: skip

    def _classified(self, count: int, rng: np.random.Generator) -> list[Pair]:
        others = rng.permutation(KINDS[1:])[: rng.integers(1, 3)]
        kinds = [KINDS[0], *map(str, others)]
        names = rng.choice(self.words, len(kinds), replace=False)
        out = []
        for _ in range(count):
            which = int(rng.integers(len(kinds)))
            text, other = self.windows(rng)
            out.append(Pair(arranged(text, kinds[which], other, rng), str(names[which])))
        return out
