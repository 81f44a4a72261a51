"""Beginnings that prompts of different sessions have in common: a system message, a conversation so far.

What comes up for the second time is kept; from the third time on it is not computed again. Its keys are copied into the
row that begins with it, so that a decoding step is no slower than without (inside a session, beginnings that many rows
share are kept apart and attended to together; see session.py). The keys are those of the weights as they were: only for
an engine whose weights do not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tutelage.model.plans import StoredKeys

BLOCK = 16
"""Beginnings are compared and kept in steps of so many tokens."""
SEEN = 1 << 16
"""Most beginnings that are remembered as having come up."""


@dataclass
class Prefix:
    """A kept beginning."""

    tokens: tuple[int, ...]
    keys: StoredKeys

    def part(self, start: int, stop: int) -> StoredKeys:
        """The keys of some of its tokens (views)."""
        return StoredKeys({layer: (k[:, start:stop], v[:, start:stop]) for layer, (k, v) in self.keys.layers.items()})


class Prefixes:
    """The beginnings that came up last, at most `capacity` tokens of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = 0
        """That are kept."""
        self.saved = 0
        """Tokens of prompts that were not computed."""
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()

    def find(self, prompt: Sequence[int]) -> tuple[Prefix | None, int]:
        """The longest kept beginning of a prompt, and how long a beginning is worth keeping (0: none that is not kept
        already). Never the whole prompt: its last token's logits are needed."""
        found, seen = None, 0
        for size, mark in _marks(prompt):
            kept = self._kept.get(mark)
            if kept is not None and kept.tokens == tuple(prompt[:size]):
                found = kept
                self._kept.move_to_end(mark)
            if mark in self._seen:
                seen = size
                self._seen.move_to_end(mark)
            self._seen[mark] = None
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        known = len(found.tokens) if found is not None else 0
        return found, seen if known < seen <= self.capacity else 0

    def keep(self, prompt: Sequence[int], parts: Sequence[StoredKeys]) -> None:
        """Keep the beginning that is this prompt, whose keys are `parts` in a row."""
        *_, (size, mark) = _marks([*prompt, 0])
        if mark in self._kept or size != len(prompt):
            return
        layers = {
            layer: tuple(torch.cat([part.layers[layer][i] for part in parts], dim=1) for i in (0, 1))
            for layer in parts[0].layers
        }
        self._kept[mark] = Prefix(tuple(prompt), StoredKeys(layers))  # type: ignore[arg-type]
        self.tokens += size
        while self.tokens > self.capacity:
            self.tokens -= len(self._kept.popitem(last=False)[1].tokens)


def _marks(prompt: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(size, hash) of the beginnings of whole blocks that leave at least one token."""
    mark = 0
    for size in range(BLOCK, len(prompt), BLOCK):
        mark = hash((mark, *prompt[size - BLOCK : size]))
        yield size, mark
