"""Small statistics used by every stage: intervals, bootstrap over cases, Kendall's tau, calibration error."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """(mean, low, high) by the normal approximation."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = sum(values) / n
    var = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = z * math.sqrt(var / n)
    return mean, mean - half, mean + half


def seeds_interval(values: Sequence[float], n: int) -> tuple[float, float, float]:
    """(mean, low, high) of proportions over seeds that share n test examples: 95%, of both what the seed and what the
    test examples move (more seeds make the first smaller, not the second). Wilson's for one seed."""
    if len(values) == 1:
        return values[0], *wilson(values[0] * n, n)
    seeds, low, _ = mean_interval(values, 1.0)
    half = 1.96 * math.sqrt((seeds - low) ** 2 + seeds * (1 - seeds) / n)
    return seeds, max(0.0, seeds - half), min(1.0, seeds + half)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b (ties handled); 0 when either side is all ties."""
    concordant = discordant = ties_a = ties_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = a[i] - a[j], b[i] - b[j]
            if x == 0 and y == 0:
                continue
            if x == 0:
                ties_a += 1
            elif y == 0:
                ties_b += 1
            elif (x > 0) == (y > 0):
                concordant += 1
            else:
                discordant += 1
    total = math.sqrt((concordant + discordant + ties_a) * (concordant + discordant + ties_b))
    return (concordant - discordant) / total if total else 0.0


def reliability(
    probabilities: Sequence[float], outcomes: Sequence[float], edges: Sequence[float]
) -> list[dict[str, float]]:
    """The reliability curve: {"low", "high", "n", "confidence", "frequency"} of every bin that holds a probability.

    `edges` ascend; a bin holds its lower edge, the last one its upper edge too. "confidence" is the mean probability,
    "frequency" the mean outcome (0..1).
    """
    inside: dict[int, list[int]] = {}
    for i, p in enumerate(probabilities):
        inside.setdefault(min(max(bisect_right(edges, p) - 1, 0), len(edges) - 2), []).append(i)
    return [
        {
            "low": edges[b], "high": edges[b + 1], "n": len(rows),
            "confidence": sum(probabilities[i] for i in rows) / len(rows),
            "frequency": sum(outcomes[i] for i in rows) / len(rows),
        }
        for b, rows in sorted(inside.items())
    ]  # fmt: skip


def calibration_error(
    probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10, edges: Sequence[float] = ()
) -> float:
    """Expected calibration error (Guo et al. 2017): mean |confidence - frequency| over equal-width bins, or `edges`."""
    curve = reliability(probabilities, outcomes, edges or [b / bins for b in range(bins + 1)])
    return sum(row["n"] * abs(row["confidence"] - row["frequency"]) for row in curve) / max(1, len(probabilities))


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's r; 0 when a side is constant."""
    n = len(a)
    if n < 2:
        return 0.0
    ma, mb = sum(a) / n, sum(b) / n
    va, vb = sum((x - ma) ** 2 for x in a), sum((y - mb) ** 2 for y in b)
    if va <= 0 or vb <= 0:
        return 0.0
    return sum((x - ma) * (y - mb) for x, y in zip(a, b)) / math.sqrt(va * vb)


def bootstrap_weights(n: int, samples: int = 1000, seed: int = 0) -> Any:
    """[samples, n] array: how often each of `n` cases is drawn in a resample of `n` with replacement."""
    import numpy as np

    if not n:
        return np.zeros((samples, 0))
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples).astype(float)


def percentile_interval(values: Any, share: float = 0.95) -> tuple[float, float]:
    """The middle `share` of a statistic's resamples (Efron's percentile interval), those that are NaN left out.

    With few cases (below about 20) it is too narrow. (NaN, NaN) when nothing is left.
    """
    import numpy as np

    kept = np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return math.nan, math.nan
    low, high = np.quantile(kept, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def ratio_interval(tops: Any, bottoms: Any, weights: Any = None) -> tuple[float, float, float]:
    """(sum of tops / sum of bottoms, low, high), resampling cases: a share whose counts hang together within a case.

    `tops`, `bottoms`: arrays [cases]; `weights`: those of `bootstrap_weights`, made here if not given. NaN where
    nothing was counted; the bounds are NaN when fewer than two cases count.
    """
    import numpy as np

    tops, bottoms = np.asarray(tops, float), np.asarray(bottoms, float)
    total = bottoms.sum()
    if total <= 0:
        return math.nan, math.nan, math.nan
    value = float(tops.sum() / total)
    if (bottoms > 0).sum() < 2:
        return value, math.nan, math.nan
    weights = bootstrap_weights(len(tops)) if weights is None else weights
    below = weights @ bottoms
    return value, *percentile_interval(weights @ tops / np.where(below > 0, below, math.nan))
