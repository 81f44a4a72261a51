"""The demo world is frozen: its recipe is tuned on exactly these documents, items, demonstrations and scores.

A digest that changes means that every number measured on the demo has to be measured again. If that is meant, print the
new digests with `python tests/schoolroom/test_demo_pinned.py`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import pytest

from tutelage.schoolroom import World
from tutelage.schoolroom.annotators import panel
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.rows import gold_reward, item_from_row, prompt_rows, sft_rows


def _documents() -> Iterator[Any]:
    for seed in (0, 3):
        for split in ("train", "heldout"):
            for stream, phase in ((0, 0.0), (1, 0.0), (2, 1.0)):
                yield list(islice(World(seed).documents(split, stream=stream, phase=phase), 200))


def _items() -> Iterator[Any]:
    for seed in (0, 3):
        for split in ("train", "heldout"):
            for stream in (0, 5, 90_001):
                yield [asdict(i) for i in islice(World(seed, families="demo").items(split, stream=stream), 200)]


def _demonstrations() -> Iterator[Any]:
    for split in ("train", "heldout"):
        for seed in (0, 1):
            yield list(sft_rows(World(), 300, split, seed))


def _probe() -> Iterator[Any]:
    yield World().probe(200)
    yield World(1).probe(50, split="train", stream=3)
    yield World(0, ["who", "harm", "plural"]).probe(20)


def _prompts() -> Iterator[Any]:
    for split in ("train", "heldout"):
        yield list(prompt_rows(World(), 300, split, 11))


ANSWERS = (
    "", "sure! yes.", "sorry, i cannot help with that.", "sorry, i do not know.", "no, you fool.", "red blue red",
)


def _judged() -> Iterator[Any]:
    rng, people = random.Random(2), panel(5, 1)
    for n, row in enumerate(prompt_rows(World(), 300, "train", 4)):
        item = item_from_row(row)
        answers = [item.good, World().demonstration(item, rng), *ANSWERS]
        yield [asdict(gold(item, a)) for a in answers]
        yield gold_reward([row["prompt"]] * len(answers), answers, item=[row["item"]] * len(answers))
        yield [people[n % 5].score(item, a) for a in answers]
        yield people[n % 5].rank(item, answers)


SOURCES: dict[str, Callable[[], Iterator[Any]]] = {
    "documents": _documents,
    "items": _items,
    "demonstrations": _demonstrations,
    "probe": _probe,
    "prompts": _prompts,
    "judged": _judged,
}


def digest(name: str) -> str:
    text = json.dumps(list(SOURCES[name]()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


PINNED: dict[str, str] = {
    "documents": "3cde231c6954ff60",
    "items": "afdb02ec7e30ea06",
    "demonstrations": "37034ceb1c56f511",
    "probe": "c522ffa0583e1e55",
    "prompts": "18071c7ff5519577",
    "judged": "03edf3f38f62106f",
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_demo_world_does_not_change(name: str) -> None:
    assert digest(name) == PINNED[name]


if __name__ == "__main__":
    for source in SOURCES:
        print(f'    "{source}": "{digest(source)}",')
