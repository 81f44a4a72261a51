"""How far a proxy can be optimised before what it stands for falls.

Source: Gao, Schulman and Hilton 2022, "Scaling Laws for Reward Model Overoptimization", sec. 3.

With d = sqrt(KL(policy || start)), the gold score's gain over the start was found to follow

    best-of-n   R(d) = d (alpha - beta d)          RL   R(d) = d (alpha - beta log d)

so alpha is how steeply it rises at first and beta how soon it turns. Both are linear in (alpha, beta), hence fitted by
least squares without a start value to choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Law = Literal["best_of_n", "rl"]


@dataclass(frozen=True)
class Fit:
    """A fitted law. r2: share of the scores' variance that it explains; start: the score at d = 0; points: how many."""

    law: Law
    alpha: float
    beta: float
    start: float
    r2: float
    points: int

    def gain(self, distance: float) -> float:
        """The law's gain over the start at d = `distance`; 0 at 0, where both laws begin."""
        if distance <= 0:
            return 0.0
        bend = distance if self.law == "best_of_n" else math.log(distance)
        return distance * (self.alpha - self.beta * bend)

    @property
    def turn(self) -> float | None:
        """The d at which the gain is greatest; None where the law never turns (beta not above 0)."""
        if self.beta <= 0:
            return None
        if self.law == "best_of_n":
            return self.alpha / (2 * self.beta)
        return math.exp(min(700.0, self.alpha / self.beta - 1))


def fit(law: Law, distances: Sequence[float], scores: Sequence[float], start: float | None = None) -> Fit | None:
    """The law nearest to the points (d, score) by least squares. None for fewer than three points with d > 0.

    start: the score at d = 0, subtracted from all; by default the mean over the points that lie there (d < 0.05), or
    else the score of the nearest point.
    """
    d, r = np.asarray(distances, dtype=float), np.asarray(scores, dtype=float)
    known = np.isfinite(d) & np.isfinite(r)
    d, r = np.maximum(d[known], 0.0), r[known]
    if (d > 0).sum() < 3:
        return None
    if start is None:
        near = d < 0.05
        start = float(r[near].mean() if near.any() else r[d.argmin()])
    away = d > 0
    d, gain = d[away], r[away] - start
    bend = d if law == "best_of_n" else np.log(d)
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * bend], axis=1), gain, rcond=None)
    residual = gain - d * (alpha + minus_beta * bend)
    spread = float(((gain - gain.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread > 0 else 0.0
    return Fit(law, float(alpha), float(-minus_beta), start, r2, len(d))


def over_optimised(distances: Sequence[float], gold: Sequence[float], window: int = 5) -> dict[str, float]:
    """How a run ended beside its best: gold_best and its distance, gold_last, gold_lost (best - last), each a mean over
    `window` updates. {} without points."""
    if not gold:
        return {}
    width = min(window, len(gold))
    means = [sum(gold[i : i + width]) / width for i in range(len(gold) - width + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    at = sum(distances[best : best + width]) / width
    lost = means[best] - means[-1]
    return {"gold_best": means[best], "gold_best_distance": at, "gold_last": means[-1], "gold_lost": lost}
