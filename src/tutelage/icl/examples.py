"""One example of a task: what every part of in-context learning reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

T = TypeVar("T")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What choices are called, in order."""


@dataclass(frozen=True)
class Example:
    """An input, the answers it may have, and the right one."""

    fields: Mapping[str, str] = field(hash=False)
    """The columns that templates name."""
    text: str
    """The whole input as one plain string: what retrievers and perplexities read."""
    options: tuple[str, ...] = ()
    """Label words or choices, in order; empty where the answer is open."""
    gold: int = -1
    """Index into options; -1 where open or unknown."""
    answer: str = ""
    """The gold answer as text (``options[gold]`` where there are options)."""
    rationale: str = ""
    """A gold chain of thought, where the data has one."""


def subsample(items: Sequence[T], limit: int, seed: int = 0) -> list[T]:
    """At most `limit` of them (0: all), drawn once and kept in their order."""
    if not limit or limit >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 5]).permutation(len(items))[:limit]
    return [items[i] for i in sorted(chosen)]
