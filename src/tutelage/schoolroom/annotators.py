"""Simulated annotators: people who see the gold score through noise and personal taste."""

from __future__ import annotations

import random
import zlib

from tutelage.schoolroom.judge import gold
from tutelage.schoolroom.world import Item


class Annotator:
    """Sees gold + a liking for politeness and length + Gaussian noise; near-equal answers are ties."""

    def __init__(self, seed: int = 0, noise: float = 0.2, bias: float = 0.05, tie: float = 0.02):
        rng = random.Random(f"annotator:{seed}")
        self.seed, self.noise, self.tie = seed, noise, tie
        self.likes_polite, self.likes_length = rng.gauss(0, bias), rng.gauss(0, bias)

    def score(self, item: Item, response: str) -> float:
        """One noisy impression; the same annotator gives the same answer the same score."""
        rng = random.Random(f"{self.seed}:{zlib.crc32((item.prompt + '|' + response).encode())}")
        seen = gold(item, response)
        length = min(len(response.split()), 20) / 20
        return seen.total + self.likes_polite * seen.polite + self.likes_length * length + rng.gauss(0, self.noise)

    def rank(self, item: Item, responses: list[str]) -> list[list[int]]:
        """Groups of indices, best first; a group is a tie."""
        scores = [self.score(item, r) for r in responses]
        groups: list[list[int]] = []
        for i in sorted(range(len(responses)), key=lambda i: -scores[i]):
            if groups and scores[groups[-1][0]] - scores[i] < self.tie:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups


def panel(n: int, seed: int = 0) -> list[Annotator]:
    """`n` annotators with tastes of their own."""
    return [Annotator(seed * 1000 + i) for i in range(n)]
