"""How good a reward model is on held-out rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.stats import calibration_error, correlation, kendall_tau, wilson


@dataclass(frozen=True)
class Truth:
    """What is known of one row's responses beyond the labels: their true scores, and which of them are right."""

    gold: Sequence[float]
    correct: Sequence[bool]


def reward_report(
    rows: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]], truths: Sequence[Truth | None]
) -> dict[str, Any]:
    """Accuracy over pairs with its 95% Wilson interval, Kendall's tau, calibration, length bias.

    Where the truth is known, also right_over_wrong (share of right-wrong pairs of one prompt ordered so), gold_accuracy
    (share of pairs ordered as the true scores order them) and accuracy_ceiling, the accuracy of the true scores on the
    same labels: noise in the labels leaves no more to be reached. Equal scores count one half. length_only_accuracy is
    that of preferring the longer response.
    """
    seen, length, gate, gold, ceiling = ([0.0, 0] for _ in range(5))  # each: right, pairs
    taus, confident, wins, flat, lengths = [], [], [], [], []
    for row, score, truth in zip(rows, scores, truths, strict=True):
        rank = {i: r for r, group in enumerate(row["ranking"]) for i in group}
        texts = row["responses"]
        taus.append(kendall_tau(score, [-rank[i] for i in range(len(texts))]))
        flat += list(score)
        lengths += [len(t) for t in texts]
        for a in range(len(texts)):
            for b in range(len(texts)):
                won = _won(score[a], score[b])
                if rank[a] < rank[b]:
                    _count(seen, won)
                    _count(length, _won(len(texts[a]), len(texts[b])))
                    confident.append(1 / (1 + math.exp(-min(abs(score[a] - score[b]), 50.0))))
                    wins.append(won)
                    if truth:
                        _count(ceiling, _won(truth.gold[a], truth.gold[b]))
                if truth and truth.correct[a] and not truth.correct[b]:
                    _count(gate, won)
                if truth and truth.gold[a] > truth.gold[b] + 1e-9:
                    _count(gold, won)
    low, high = wilson(round(seen[0]), int(seen[1]))
    out = {
        "accuracy": seen[0] / max(1, seen[1]),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": seen[1],
        "kendall_tau": sum(taus) / max(1, len(taus)),
        "calibration_error": calibration_error(confident, wins),
        "length_correlation": correlation(flat, lengths),
        "length_only_accuracy": length[0] / max(1, length[1]),
    }
    for name, (right, pairs) in (("right_over_wrong", gate), ("gold_accuracy", gold), ("accuracy_ceiling", ceiling)):
        if pairs:
            out |= {name: right / pairs, f"{name}_pairs": pairs}
    return out


def _count(tally: list[Any], won: float) -> None:
    tally[0] += won
    tally[1] += 1


def _won(a: float, b: float) -> float:
    return float(a > b) + 0.5 * (a == b)
