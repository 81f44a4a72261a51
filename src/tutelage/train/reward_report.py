"""How good a reward model is on held-out rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tutelage.core.stats import calibration_error, correlation, kendall_tau, wilson


def reward_report(
    rows: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]], correct: Sequence[Sequence[bool] | None]
) -> dict[str, Any]:
    """Accuracy over pairs with its 95% Wilson interval, Kendall's tau, calibration, length bias; and, where `correct`
    says which responses are right, the share of right-wrong pairs of one prompt that are ordered so.

    Equal scores count one half. length_only_accuracy is that of preferring the longer response.
    """
    right = length_right = 0.0
    pairs = gate_pairs = 0
    gate_right = 0.0
    taus, confident, wins, flat, lengths = [], [], [], [], []
    for row, score, truth in zip(rows, scores, correct, strict=True):
        rank = {i: r for r, group in enumerate(row["ranking"]) for i in group}
        texts = row["responses"]
        taus.append(kendall_tau(score, [-rank[i] for i in range(len(texts))]))
        flat += list(score)
        lengths += [len(t) for t in texts]
        for a in range(len(texts)):
            for b in range(len(texts)):
                if rank[a] < rank[b]:
                    pairs += 1
                    won = _won(score[a], score[b])
                    right += won
                    length_right += _won(len(texts[a]), len(texts[b]))
                    confident.append(1 / (1 + math.exp(-min(abs(score[a] - score[b]), 50.0))))
                    wins.append(won)
                if truth and truth[a] and not truth[b]:
                    gate_pairs += 1
                    gate_right += _won(score[a], score[b])
    low, high = wilson(round(right), pairs)
    out = {
        "accuracy": right / max(1, pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": pairs,
        "kendall_tau": sum(taus) / max(1, len(taus)),
        "calibration_error": calibration_error(confident, wins),
        "length_correlation": correlation(flat, lengths),
        "length_only_accuracy": length_right / max(1, pairs),
    }
    if gate_pairs:
        out |= {"right_over_wrong": gate_right / gate_pairs, "right_over_wrong_pairs": gate_pairs}
    return out


def _won(a: float, b: float) -> float:
    return float(a > b) + 0.5 * (a == b)
