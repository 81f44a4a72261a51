"""The world as JSON rows, and the gold judge as a reward function."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.world import Item, World


def sft_rows(world: World, n: int, split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Conversations with demonstrations of mixed quality."""
    rng = random.Random(f"demonstrations:{seed}:{split}")
    for item in islice(world.items(split, stream=seed), n):
        turns = [{"role": "user", "content": item.prompt},
                 {"role": "assistant", "content": world.demonstration(item, rng)}]
        yield {"messages": turns, "family": item.family, "answer": item.answer}


def prompt_rows(world: World, n: int, split: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Prompts with the serialised item, which the gold judge reads."""
    for item in islice(world.items(split, stream=seed), n):
        yield {"prompt": item.prompt, "item": asdict(item)}


def item_from_row(row: Mapping[str, Any]) -> Item:
    return Item(**row["item"])


def gold_reward(prompts: Sequence[str], completions: Sequence[str], item: Sequence[Mapping[str, Any]] = (),
                **columns: Any) -> list[float]:
    """The gold judge with TRL's reward signature; needs the column `item`."""
    return [gold(Item(**i), text).total for i, text in zip(item, completions, strict=True)]
