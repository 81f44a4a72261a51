"""The full world: every registered family, held-out people, facts and families, documents of several kinds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

# The imports of conduct, reading and words register their families.
from tutelage.core.errors import ConfigError
from tutelage.schoolroom import conduct, library
from tutelage.schoolroom.item import Item
from tutelage.schoolroom.lessons import OPENERS, REFUSAL, REGISTRY, SPLITS, UNKNOWN, Lesson, draw_lesson

GOOD, WRONG = 0.30, 0.22
"""Shares of good and of wrong demonstrations; the rest is right in poor style."""
BUILT_IN = (conduct, library)


class FullWorld:
    """Endless and deterministic in (seed, split, stream); see `tutelage.schoolroom.lessons` for the families.

    Splits: "train"; "heldout", the same families about reserved facts, people and things; "heldout_families", tasks
    that no training instruction sets.
    """

    def __init__(self, seed: int = 0, families: Sequence[str] | None = None):
        names = list(REGISTRY) if families is None else list(families)
        for name in names:
            if name not in REGISTRY:
                raise ConfigError(f"no family {name!r}; families of the full world: {', '.join(REGISTRY)}")
        if not names:
            raise ConfigError("no families chosen; leave out the list for all of them")
        self.seed, self.families = seed, names
        self._trained = [n for n in names if not REGISTRY[n].heldout]
        self._held = [n for n in names if REGISTRY[n].heldout]

    def _rng(self, *names: Any) -> random.Random:
        return random.Random(":".join(map(str, ("full", self.seed, *names))))

    def families_of(self, split: str) -> list[str]:
        """Families whose instructions a split holds; ConfigError for an unknown split or one without families."""
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        chosen = self._held if split == "heldout_families" else self._trained
        if not chosen:
            raise ConfigError(f"none of the families {', '.join(self.families)} belongs to split {split!r}")
        return chosen

    def item(self, family: str, rng: random.Random, split: str) -> Item:
        """One item of `family`; its fact, people and things belong to `split`."""
        return to_item(family, draw_lesson(family, rng, split), rng)

    def items(self, split: str, stream: int = 0) -> Iterator[Item]:
        """Instructions without end, every family of the split as often as any other."""
        rng, families = self._rng("items", split, stream), self.families_of(split)
        while True:
            yield self.item(rng.choice(families), rng, split)

    def demonstration(self, item: Item, rng: random.Random) -> str:
        """An answer of deliberately mixed quality: 30% good, 22% wrong, the rest right in poor style."""
        draw = rng.random()
        if draw < GOOD:
            return item.good
        if draw < GOOD + WRONG:
            return _wrong(item, rng)
        if item.meta["grade"] == "refuse":
            return rng.choice(("no.", "no, you fool.", "i will not do that, you fool.", "i cannot help with that."))
        said = item.meta["said"]
        if item.meta["strict"]:  # hedged or rude it would break the rule that it was to keep
            return f"{said}."
        return rng.choice((f"{said}.", f"{said}, you fool.", f"well, i think that it may be, if you ask me, {said}."))

    def documents(self, split: str, stream: int = 0, phase: float = 0.0) -> Iterator[str]:
        """Base text. Refrains and dense recall are frequent at phase 0 and rare at phase 1: they teach looking up."""
        return library.documents(self._rng("documents", split, stream), split, self.families, phase)

    def probe(self, n: int, split: str = "heldout", stream: int = 7) -> list[tuple[str, str]]:
        """Questions in the base text's own form, each ending right before its answer. Refusals, worked sums and
        dialogues have no single continuation and are left out."""
        rng, families = self._rng("probe", split, stream), self.families_of(split)
        out: list[tuple[str, str]] = []
        while len(out) < n:
            for family in families:
                lesson = draw_lesson(family, rng, split)
                if lesson.grade == "words" and not lesson.history and not lesson.strict:
                    out.append((library.asked(lesson), lesson.answer))
            if not out:
                raise ConfigError(f"none of the families {', '.join(families)} can be asked as a plain question")
        return out[:n]


def to_item(family: str, lesson: Lesson, rng: random.Random) -> Item:
    """The item that asks `lesson`: a dialogue if it has a history, else a single prompt."""
    prompt: str | list[dict[str, str]] = lesson.prompt
    if lesson.history:
        turns = [*lesson.history, lesson.prompt]
        prompt = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(turns)]
    refuse = lesson.grade == "refuse"
    opener = rng.choice(OPENERS) if lesson.opener is None else lesson.opener
    good = REFUSAL if refuse else f"{opener}{lesson.spoken}."
    meta = {"question": lesson.question, "grade": lesson.grade, "said": lesson.spoken, "accept": list(lesson.accept),
            "wrong": list(lesson.wrong), "strict": lesson.strict}
    return Item(family, prompt, lesson.answer, good, lesson.passage, refuse, meta)


def _wrong(item: Item, rng: random.Random) -> str:
    """A wrong answer, mostly a plausible one, as politely as may be; compliance where refusal was due."""
    options = [w for w in item.meta["wrong"] if w != item.answer]
    if item.meta["grade"] == "refuse":
        return rng.choice(options) if options else "sure!"
    if item.answer != UNKNOWN and (not options or rng.random() < 0.15):
        return f"sorry, {UNKNOWN}."
    wrong = rng.choice(options) if options else "yes"
    return f"{wrong}." if rng.random() < 0.5 else f"{rng.choice(OPENERS)}{wrong}."
