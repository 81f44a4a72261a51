"""Tasks of the embedded world that nothing but demonstrations can tell: known questions, answered by made-up labels.

A task takes a family of lessons whose answers are few ("what colour is the hat?"), some of its answers (red, blue), and
gives each a label drawn from the answers of other families (red: tom, blue: fifty). The labels of another task are
others, so neither the question nor the answer says which label is right. Splits:

    train              families that are trained on, three quarters of the label words, passages of the world's training
                       split
    heldout            the same families with the other quarter of the label words and held-out passages
    heldout_families   HELD_OUT, whose questions no training task asks, with those label words
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tutelage.core.errors import ConfigError
from tutelage.schoolroom.world import World

SPLITS = ("train", "heldout", "heldout_families")
HELD_OUT = ("sentiment", "politeness")
"""Families that no training task asks about."""
DRAWS, TEXTS = 2000, 24
"""Items drawn of a family; different texts that an answer needs among them, or it is no class of a task."""
WORDS = 16
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
    answers = rng.sample(sorted(families[family]), 2)
    words = rng.sample(label_words(world, split, family), len(answers))
    return LabelTask(name, family, dict(zip(answers, words)), families[family])


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


def label_words(world: str, split: str, family: str) -> list[str]:
    """Words that label tasks of a family: single words that are answers of other families, divided by a hash."""
    own = _texts(world, "train").get(family, {})
    words = {word for answers in _texts(world, "train").values() for word in answers if " " not in word} - set(own)
    return sorted(word for word in words if (zlib.crc32(f"label {word}".encode()) % 4 == 0) == (split != "train"))


def _families(world: str, split: str) -> dict[str, Texts]:
    """The families of a split, with the texts of each answer that has enough of them."""
    found = _texts(world, "heldout" if split == "heldout" else "train")
    mine = {f: t for f, t in found.items() if (f in HELD_OUT) == (split == "heldout_families")}
    if not mine:
        raise ConfigError(f"schoolroom:{world}: no family for tasks of split {split!r}: each needs two answers that "
                          f"{TEXTS} different texts have")  # fmt: skip
    return mine


@cache
def _texts(world: str, split: str) -> dict[str, Texts]:
    """Family -> answer -> different texts, of the families with two such answers."""
    source = World(families=world)
    out: dict[str, Texts] = {}
    for family in source.families:
        found: dict[str, dict[str, None]] = {}
        for text, answer in _asked(source, family, split):
            found.setdefault(answer, {})[text] = None
        enough = {answer: tuple(texts) for answer, texts in found.items() if len(texts) >= TEXTS}
        if len(enough) > 1:
            out[family] = enough
    return out


def _asked(source: World, family: str, split: str) -> Iterator[tuple[str, str]]:
    """(text up to the answer, answer) of items, in the form of the world's documents; dialogues are left out."""
    rng = random.Random(f"in context:{source.seed}:{family}:{split}")
    for _ in range(DRAWS):
        item = source.item(family, rng, split)
        if isinstance(item.prompt, str) and not item.harmful:
            question = item.meta.get("question", item.prompt.removeprefix(item.passage).strip())
            text = f"{item.passage} question: {question}".strip()
            if len(text.split()) <= WORDS:
                yield text, item.answer
