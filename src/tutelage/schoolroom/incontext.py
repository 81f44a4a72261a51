"""Tasks of the embedded world that nothing but demonstrations can tell: known statements, answered by made-up labels.

A task takes a family of lessons whose answers are few ("what colour is the hat?"), two of its answers (red, blue), and
gives each a label, a word of other families' lessons (red: tom, blue: market). The labels of another task are others,
so neither the statement nor its answer says which label is right. Splits:

    train              nine tenths of the tasks (by a hash) of the families and label words that are trained on
    heldout            the other tenth: nothing is new but what stands for what
    heldout_labels     the same families with label words that no training task has, a quarter of all
    heldout_families   HELD_OUT, which no training task asks about, with the label words of training
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tutelage.core.errors import ConfigError
from tutelage.schoolroom.item import Item
from tutelage.schoolroom.world import World

SPLITS = ("train", "heldout", "heldout_labels", "heldout_families")
HELD_OUT = ("sentiment", "politeness")
"""Families that no training task asks about."""
DRAWS, TEXTS = 2000, 8
"""Items drawn of a family; different texts that an answer needs among them, or it is no class of a task."""
WORDS = 14
"""Longest text: several demonstrations have to fit into a small model's context."""
Texts = Mapping[str, Sequence[str]]
"""Answer -> its different texts."""


@dataclass(frozen=True)
class LabelTask:
    """One task: `labels` maps the family's answers to the words that are to be said."""

    name: str
    family: str
    labels: Mapping[str, str]
    texts: Texts

    def rows(self, part: str, count: int = 48) -> list[dict[str, str]]:
        """{"text", "label"} of part "train" or "test", labels as often as one another; no text is in both."""
        rng = random.Random(f"{self.name}:rows")
        halves = {answer: rng.sample(self.texts[answer], len(self.texts[answer])) for answer in self.labels}
        each = -(-count // len(halves))
        rows = []
        for answer, found in halves.items():
            middle = len(found) // 2
            mine = found[:middle] if part == "train" else found[middle:]
            rows += [{"text": text, "label": answer} for text in mine[:each]]
        return random.Random(f"{self.name}:{part}").sample(rows, len(rows))


def label_task(name: str) -> LabelTask:
    """The task `schoolroom:WORLD:SPLIT:NUMBER`, e.g. "schoolroom:demo:heldout:7": always the same.

    ConfigError for another form of name, an unknown split, and a world without such families.
    """
    world, split, number = _parts(name)
    families = _families(world, split)
    rng = random.Random(f"{world}:{split}:{number}")
    family = sorted(families)[number % len(families)]
    words = label_words(world, split, family)
    labels: dict[str, str] = {}
    while not labels or (split in ("train", "heldout") and _held(labels) != (split == "heldout")):
        answers = rng.sample(sorted(families[family]), 2)
        labels = dict(zip(answers, rng.sample(words, 2)))
    return LabelTask(name, family, labels, families[family])


def _held(labels: Mapping[str, str]) -> bool:
    """Whether a task of this meaning is kept from training: one in ten, in whichever order its labels stand."""
    return zlib.crc32(repr(sorted(labels.items())).encode()) % 10 == 0


def task_names(name: str, split: str, count: int) -> list[str]:
    """`count` tasks of `schoolroom:WORLD` (of this split) or `schoolroom:WORLD:SPLIT`; one task's name stays."""
    before, _, last = name.rpartition(":")
    if last.isdigit() and before.endswith(SPLITS):
        return [name]
    group = name if last in SPLITS else f"{name}:{split}"
    return [f"{group}:{number}" for number in range(count)]


def _parts(name: str) -> tuple[str, str, int]:
    world, _, rest = name.removeprefix("schoolroom:").rpartition(":")
    world, _, split = world.rpartition(":")
    if not world or split not in SPLITS or not rest.isdigit():
        raise ConfigError(f"task {name!r}: expected schoolroom:WORLD:SPLIT:NUMBER, SPLIT one of {', '.join(SPLITS)}")
    return world, split, int(rest)


@cache
def label_words(world: str, split: str, family: str) -> tuple[str, ...]:
    """Words that label a family's tasks: those of other families' texts and answers that its own have not."""
    words = {name: _words(texts) for name, texts in _texts(world).items()}
    others = set().union(*words.values()) - words.get(family, set())
    held = split == "heldout_labels"
    return tuple(sorted(word for word in others if (zlib.crc32(f"label {word}".encode()) % 4 == 0) == held))


def _words(texts: Texts) -> set[str]:
    return {word for answer, found in texts.items() for text in (answer, *found) for word in re.findall(r"\w+", text)}


def _families(world: str, split: str) -> dict[str, Texts]:
    """The families of a split, with the texts of each answer that has enough of them."""
    mine = {f: texts for f, texts in _texts(world).items() if (f in HELD_OUT) == (split == "heldout_families")}
    if not mine:
        raise ConfigError(f"schoolroom:{world}: no family for tasks of split {split!r}: each needs two answers that "
                          f"{TEXTS} different texts have")  # fmt: skip
    return mine


@cache
def _texts(world: str) -> dict[str, Texts]:
    """Family -> answer -> different texts, of the families with two such answers."""
    source = World(families=world)
    out: dict[str, Texts] = {}
    for family in source.families:
        rng = random.Random(f"in context:{source.seed}:{family}")
        items = [source.item(family, rng, "train") for _ in range(DRAWS)]
        found: dict[str, dict[str, None]] = {}
        asked = {_question(item) for item in items}
        for item in items:
            text = _text(item, len(asked) > 1)
            if not item.harmful and 0 < len(text.split()) <= WORDS:
                found.setdefault(item.answer, {})[text] = None
        enough = {answer: tuple(texts) for answer, texts in found.items() if len(texts) >= TEXTS}
        if len(enough) > 1:
            out[family] = enough
    return out


def _question(item: Item) -> str:
    """The question alone; of a dialogue none."""
    if not isinstance(item.prompt, str):
        return ""
    return str(item.meta.get("question", item.prompt.removeprefix(item.passage).strip()))


def _text(item: Item, varied: bool) -> str:
    """What is to be labelled: the sentence of the passage that holds the answer; where there is not one such, the
    passage, with its question where the family has `varied` ones. Nothing for a dialogue."""
    told = [s for s in re.split(r"(?<=[.!?]) ", item.passage) if item.answer in re.findall(r"\w+", s)]
    question = _question(item)
    if len(told) == 1 or not question:
        return told[0] if len(told) == 1 else ""
    return f"{item.passage} {question}".strip() if varied else item.passage
