"""Simulated annotators: people who see the gold score through noise and personal taste.

How much they agree is measured by `agreement`; InstructGPT's labellers agreed with one another on 73% of comparisons
(sec. 3.4).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

from tutelage.core.agreement import Ranked, agreement_of, agreement_report
from tutelage.schoolroom.item import Item
from tutelage.schoolroom.judge import gold


class Annotator:
    """Sees gold + a liking for politeness and length + Gaussian noise; near-equal answers are ties."""

    def __init__(self, seed: int = 0, noise: float = 0.2, bias: float = 0.05, tie: float = 0.02):
        rng = random.Random(f"annotator:{seed}")
        self.seed, self.noise, self.tie = seed, noise, tie
        self.likes_polite, self.likes_length = rng.gauss(0, bias), rng.gauss(0, bias)

    def score(self, item: Item, response: str) -> float:
        """One noisy impression; the same annotator gives the same answer the same score."""
        rng = random.Random(f"{self.seed}:{zlib.crc32((item.prompt_text + '|' + response).encode())}")
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


def panel(n: int, seed: int = 0, noise: float = 0.2, bias: float = 0.05) -> list[Annotator]:
    """`n` annotators with tastes of their own; more noise or bias makes them disagree more."""
    return [Annotator(seed * 1000 + i, noise, bias) for i in range(n)]


def agreement(people: Sequence[Annotator], sets: Sequence[tuple[Item, Sequence[str]]]) -> dict[str, float]:
    """Shares of answer pairs ordered alike: "with_gold" (over annotators) and "between" (over pairs of annotators).

    A pair that either side ties is left out. `sets` are items with the answers to compare; ValueError if nothing can
    be compared.
    """
    truth = Annotator(noise=0.0, bias=0.0, tie=1e-9)
    judged = [Ranked(n, "gold", truth.rank(item, list(answers))) for n, (item, answers) in enumerate(sets)]
    rankings = [
        Ranked(n, i, person.rank(item, list(answers)))
        for n, (item, answers) in enumerate(sets)
        for i, person in enumerate(people)
    ]
    found = {
        "with_gold": agreement_of(judged, rankings, samples=1)["agreement"],
        "between": agreement_report(rankings, samples=1)["agreement"],
    }
    if None in found.values():
        raise ValueError("agreement: no pair of answers that two sides both order; give several answers and annotators")
    return found
