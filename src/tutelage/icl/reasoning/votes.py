"""Votes over sampled chains of thought (self-consistency, Wang et al. 2022), and accuracy against their number.

The curve comes from one set of samples: for the majority by the exact expectation over all subsets, for weighted votes
by random orders of the paths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tutelage.core.errors import DataError
from tutelage.core.stats import wilson
from tutelage.icl.reasoning.settings import CurvePoint, ProblemResult, Weighting
from tutelage.text.answers import answer_key

EXACT_PATHS = 512
"""Up to so many paths the exact curve's binomials fit into float64."""


def log_weights(result_paths: Sequence[tuple[float | None, int | None]], weighting: Weighting) -> list[float]:
    """Each path's log-weight from (log-probability, tokens).

    majority: 0. unnormalised: log P(path). normalised: log P(path) / tokens, the geometric mean per token.
    DataError where a path has no log-probability: many servers give none.
    """
    if weighting == "majority":
        return [0.0] * len(result_paths)
    out = []
    for logprob, tokens in result_paths:
        if tokens == 0:
            out.append(0.0)  # nothing generated: probability 1
        elif logprob is None or tokens is None:
            raise DataError(
                f"weighting={weighting!r} needs each path's log-probability, and the server gave none; take "
                "weighting='majority', or a server that answers logprobs"
            )
        else:
            out.append(logprob if weighting == "unnormalised" else logprob / tokens)
    return out


def vote(keys: Sequence[str | None], logs: Sequence[float]) -> tuple[str | None, float]:
    """(winner, its share of all paths' weight). A None votes for nothing; ties go to the answer that came first."""
    if not keys:
        return None, 0.0
    top = max(logs)
    weight: dict[str, float] = {}
    for key, log in zip(keys, logs, strict=True):
        if key is not None:
            weight[key] = weight.get(key, 0.0) + math.exp(log - top)
    if not weight:
        return None, 0.0
    winner = max(weight, key=lambda key: weight[key])
    return winner, weight[winner] / sum(math.exp(log - top) for log in logs)


def expected_majority(counts: Sequence[int], right: Sequence[bool], unread: int = 0) -> list[float]:
    """P(the majority of m paths drawn without replacement is right), for m = 1 .. all paths.

    ``counts``: paths of each answer, ``right``: whether that answer is; ``unread`` paths have no answer. A tie goes to
    each tied answer alike, as it does where the first drawn of them wins. Exact: subsets are counted by a generating
    function, one variable the number of paths, the other the number of answers that tie.
    """
    total = sum(counts) + unread
    if total > EXACT_PATHS:
        raise DataError(f"{total} paths, expected at most {EXACT_PATHS} for the exact curve")
    won = np.zeros(total + 1)
    free = np.array([math.comb(unread, i) for i in range(unread + 1)], dtype=np.float64)
    for answer, n in enumerate(counts):
        if not right[answer]:
            continue
        rivals = [c for other, c in enumerate(counts) if other != answer]
        for c in range(1, n + 1):
            won += math.comb(n, c) * _rivals(rivals, free, c, total)
    return [float(won[m] / math.comb(total, m)) for m in range(1, total + 1)]


def _rivals(counts: Sequence[int], free: np.ndarray, c: int, total: int) -> np.ndarray:
    """By subset size, the ways to draw at most c of every rival, a way with t rivals at c counting 1/(t+1)."""
    most = (total - c) // c  # so many answers can tie at c
    ways = np.zeros((most + 1, total + 1))
    ways[0, : len(free)] = free
    for n in counts:
        below = np.array([math.comb(n, i) for i in range(min(n + 1, c))], dtype=np.float64)
        grown = np.stack([np.convolve(row, below)[: total + 1] for row in ways])
        if n >= c:
            grown[1:, c:] += math.comb(n, c) * ways[:-1, : total + 1 - c]
        ways = grown
    shared = (ways / np.arange(1, most + 2)[:, None]).sum(0)
    out = np.zeros(total + 1)
    out[c:] = shared[: total + 1 - c]
    return out


def sampled_votes(
    keys: Sequence[str | None], logs: Sequence[float], right: dict[str, bool], draws: int, rng: np.random.Generator
) -> list[float]:
    """P(the weighted vote of m paths is right) for m = 1 .. all, over ``draws`` random orders of the paths.

    A tie counts in parts, as in ``expected_majority``.
    """
    names = [key for key in dict.fromkeys(keys) if key is not None]
    count = len(keys)
    if not names:
        return [0.0] * count
    weights = np.zeros((count, len(names)))
    top = max(logs)
    for i, (key, log) in enumerate(zip(keys, logs, strict=True)):
        if key is not None:
            weights[i, names.index(key)] = math.exp(log - top)
    fine = np.array([right[name] for name in names])
    hits = np.zeros(count)
    for _ in range(draws):
        sums = weights[rng.permutation(count)].cumsum(0)  # [paths, answers]
        most = sums.max(1, keepdims=True)
        tied = (sums >= most * (1 - 1e-12)) & (most > 0)
        hits += (tied & fine).sum(1) / np.maximum(tied.sum(1), 1)
    return [float(x) for x in hits / draws]


def curve(
    results: Sequence[ProblemResult], weighting: Weighting = "majority", draws: int = 200, seed: int = 0
) -> list[CurvePoint]:
    """Accuracy against the number of paths, averaged over problems, with Wilson's interval over them.

    A problem without paths (an engine's error) counts as wrong at every number.
    """
    longest = max((len(r.paths) for r in results), default=0)
    if not longest:
        return []
    rng = np.random.default_rng(seed)
    total = np.zeros(longest)
    for result in results:
        if not result.paths:
            continue
        chances = _chances(result, weighting, draws, rng)
        total += np.pad(np.array(chances), (0, longest - len(chances)), mode="edge")
    points = []
    for m, hits in enumerate(total, 1):
        low, high = wilson(float(hits), len(results))
        points.append(CurvePoint(m, float(hits) / len(results), low, high))
    return points


def _chances(result: ProblemResult, weighting: Weighting, draws: int, rng: np.random.Generator) -> list[float]:
    kind = result.problem.kind
    keys = [None if p.answer is None else answer_key(p.answer, kind) for p in result.paths]
    right = {key: result.problem.grade(key) for key in keys if key is not None}
    if weighting == "majority" and len(keys) <= EXACT_PATHS:
        names = list(right)
        return expected_majority([keys.count(name) for name in names], list(right.values()), keys.count(None))
    logs = log_weights([(p.logprob, p.tokens) for p in result.paths], weighting)
    return sampled_votes(keys, logs, right, draws, rng)
