"""The world as JSON rows, and the gold judge as a reward function."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from tutelage.schoolroom.annotators import Annotator
from tutelage.schoolroom.item import Item
from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.world import World


def sft_rows(world: World, n: int, split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Conversations with demonstrations of mixed quality; the full world's dialogues have several turns."""
    rng = random.Random(f"demonstrations:{seed}:{split}")
    for item in islice(world.items(split, stream=seed), n):
        asked = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        answer = {"role": "assistant", "content": world.demonstration(item, rng)}
        yield {"messages": [*asked, answer], "family": item.family, "answer": item.answer}


def prompt_rows(world: World, n: int, split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Prompts (a string, or messages in the full world's dialogues) with the item, which the gold judge reads."""
    for item in islice(world.items(split, stream=seed), n):
        yield {"prompt": item.prompt, "item": asdict(item)}


def ranking_rows(
    world: World, n: int, split: str, people: Sequence[Annotator], each: int = 1, responses: int = 4, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Rankings of up to `responses` different answers to each of n prompts, by `each` of the people in turn: a row a
    person. The answers are drawn as demonstrations of mixed care are; a prompt with a single one is left out."""
    rng = random.Random(f"rankings:{seed}:{split}")
    for i, row in enumerate(prompt_rows(world, n, split, seed)):
        item = item_from_row(row)
        texts = list(dict.fromkeys(world.demonstration(item, rng) for _ in range(4 * responses)))[:responses]
        for k in range(each if len(texts) > 1 else 0):
            who = (i + k) % len(people)
            yield {**row, "responses": texts, "ranking": people[who].rank(item, texts), "annotator": who}


def item_from_row(row: Mapping[str, Any]) -> Item:
    return Item(**row["item"])


def gold_reward(prompts: Sequence[Any], completions: Sequence[str], item: Sequence[Mapping[str, Any]] = (),
                **columns: Any) -> list[float]:
    """The gold judge with TRL's reward signature; needs the column `item`."""
    return [gold(Item(**i), text).total for i, text in zip(item, completions, strict=True)]


def correct_reward(prompts: Sequence[Any], completions: Sequence[str], item: Sequence[Mapping[str, Any]] = (),
                   **columns: Any) -> list[float]:
    """Correctness alone, apart from style, with the same signature."""
    return [gold(Item(**i), text).correct for i, text in zip(item, completions, strict=True)]
