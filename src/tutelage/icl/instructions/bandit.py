"""Upper confidence bounds: spend few evaluations on bad arms. An arm is an instruction, a pull one of its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.core.errors import ConfigError, DataError

Pull = Callable[[Sequence[tuple[int, int]]], Sequence[float]]
"""pull([(arm, example), ...]) -> one value each, higher is better. A whole round in one call."""


@dataclass(frozen=True)
class Pulled:
    """What the rounds found out, by arm."""

    means: np.ndarray
    """Mean value [arms]; nan where an arm was never pulled."""
    counts: np.ndarray
    """Examples seen [arms], int64."""


def bounds(means: np.ndarray, counts: np.ndarray, c: float) -> np.ndarray:
    """mean + c sqrt(ln(all pulls) / pulls) [arms]; infinite where there are no pulls (UCB1, Auer et al. 2002)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = c * np.sqrt(np.log(counts.sum()) / counts)
    return np.where(counts > 0, means + bonus, np.inf)


def upper_confidence(
    pull: Pull,
    arms: int,
    examples: int,
    rounds: int = 20,
    share: float = 1 / 3,
    samples: int = 5,
    c: float = 1.0,
    seed: int = 0,
) -> Pulled:
    """Rounds of: pull the ``share`` of arms with the highest bounds (at least one) on ``samples`` more examples each.

    Equal bounds are in random order, so that the first round's arms are random. As in APE, except that an arm sees its
    examples in an order of its own and none twice (APE's code draws anew each round, and pays for repetitions); an arm
    that has seen all is left out, and the search ends when all have.
    """
    for name, value, fine in (
        ("rounds", rounds, rounds >= 1),
        ("share", share, 0 < share <= 1),
        ("samples", samples, samples >= 1),
        ("c", c, c >= 0),
    ):
        if not fine:
            raise ConfigError(f"bandit: {name}={value} is out of range (rounds, samples >= 1; 0 < share <= 1; c >= 0)")
    if not arms or not examples:
        raise DataError(f"bandit: {arms} instructions and {examples} examples; there must be at least one of each")
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(examples) for _ in range(arms)])
    totals, counts = np.zeros(arms), np.zeros(arms, dtype=np.int64)
    width = max(1, int(arms * share))
    for _ in range(rounds):
        means = totals / np.maximum(counts, 1)
        shuffled = rng.permutation(arms)
        high = bounds(means, counts, c)[shuffled]
        ranked = shuffled[np.argsort(-high, kind="stable")]
        chosen = [int(arm) for arm in ranked if counts[arm] < examples][:width]
        if not chosen:
            break
        asked = [(arm, int(e)) for arm in chosen for e in order[arm, counts[arm] : counts[arm] + samples]]
        for (arm, _), value in zip(asked, pull(asked), strict=True):
            totals[arm] += value
            counts[arm] += 1
    return Pulled(np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), counts)
