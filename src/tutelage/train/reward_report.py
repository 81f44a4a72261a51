"""How good a reward model is on held-out rankings: a summary's numbers (reward_details.py has curves and people)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.core.stats import calibration_error, correlation, kendall_tau, mean_interval, wilson
from tutelage.schoolroom.judge import gold as judge_gold
from tutelage.schoolroom.rows import item_from_row


@dataclass(frozen=True)
class Truth:
    """What is known of one row's responses beyond the labels: their true scores, and which of them are right."""

    gold: Sequence[float]
    correct: Sequence[bool]


def truth_of(row: dict[str, Any]) -> Truth | None:
    """What the embedded world's judge says of the row's responses; None for other data."""
    if "item" not in row:
        return None
    judged = [judge_gold(item_from_row(row), text) for text in row["responses"]]
    return Truth([j.total for j in judged], [j.correct >= 0.5 for j in judged])


def better_pairs(row: dict[str, Any]) -> list[tuple[int, int, float]]:
    """(better, worse, share of people who say so) of every pair of a row that more people order one way."""
    rank = {i: r for r, group in enumerate(row["ranking"]) for i in group}
    k, soft = len(rank), row.get("p_better")
    if soft is None:
        return [(a, b, 1.0) for a in range(k) for b in range(k) if rank[a] < rank[b]]
    return [(a, b, p) for a in range(k) for b in range(k) if a != b and (p := soft[a][b]) is not None and p > 0.5]


def prefers_longer(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the longer response (in characters) is the better one in at least half of the pairs."""
    won = [_won(len(r["responses"][a]), len(r["responses"][b])) for r in rows for a, b, _ in better_pairs(r)]
    return sum(won) >= 0.5 * len(won)


def pair_accuracy(rows: Sequence[dict[str, Any]], scores: Sequence[Sequence[float]]) -> float:
    """Share of the pairs that the scores order as the labels (or most of the people) do; equal scores count 1/2."""
    won = [_won(score[a], score[b]) for row, score in zip(rows, scores, strict=True) for a, b, _ in better_pairs(row)]
    return _mean(won)


def reward_report(
    rows: Sequence[dict[str, Any]],
    scores: Sequence[Sequence[float]],
    truths: Sequence[Truth | None],
    longer: bool = True,
) -> dict[str, Any]:
    """Accuracy over pairs with its 95% Wilson interval, Kendall's tau, calibration, length bias.

    Pairs of one prompt are not independent, so with K > 2 the Wilson interval is too narrow: accuracy_by_prompt is the
    mean of the prompts' accuracies with the interval over prompts. length_only_accuracy is that of always preferring
    the longer response (`longer`) or the shorter, whichever the training rows favour; over_length is by how much the
    model beats that rule on the same prompts, again with the interval over prompts.

    Where the truth is known, also right_over_wrong (share of right-wrong pairs of one prompt ordered so), gold_accuracy
    (share of pairs ordered as the true scores order them) and accuracy_ceiling, the accuracy of the true scores on the
    same labels: noise in the labels leaves no more to be reached. Equal scores count one half.
    """
    won, rule, gate, gold, ceiling, confident, outcomes = ([] for _ in range(7))  # type: ignore[var-annotated]
    by_prompt, over_length, taus = [], [], []
    for row, score, truth in zip(rows, scores, truths, strict=True):
        sizes = [len(text) if longer else -len(text) for text in row["responses"]]
        pairs = better_pairs(row)
        own, by_length = ([_won(x[a], x[b]) for a, b, _ in pairs] for x in (score, sizes))
        won, rule = won + own, rule + by_length
        taus.append(kendall_tau(score, _heights(row)))
        for (a, b, share), w in zip(pairs, own):
            confident.append(1 / (1 + math.exp(-min(abs(score[a] - score[b]), 50.0))))
            outcomes.append(w * share + (1 - w) * (1 - share))
        if pairs:
            by_prompt.append(_mean(own))
            over_length.append(_mean(own) - _mean(by_length))
        if truth:
            every = [(a, b) for a in range(len(score)) for b in range(len(score))]
            ceiling += [_won(truth.gold[a], truth.gold[b]) for a, b, _ in pairs]
            gate += [_won(score[a], score[b]) for a, b in every if truth.correct[a] and not truth.correct[b]]
            gold += [_won(score[a], score[b]) for a, b in every if truth.gold[a] > truth.gold[b] + 1e-9]
    low, high = wilson(round(sum(won)), len(won))
    lengths = [len(text) for row in rows for text in row["responses"]]
    out = {
        "accuracy": _mean(won),
        "accuracy_low": low,
        "accuracy_high": high,
        "pairs": len(won),
        "kendall_tau": _mean(taus),
        "calibration_error": calibration_error(confident, outcomes),
        "length_correlation": correlation([x for score in scores for x in score], lengths),
        "length_only_accuracy": _mean(rule),
    }
    for name, values in (("accuracy_by_prompt", by_prompt), ("over_length", over_length)):
        if values:
            out |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(values)))
    for name, values in (("right_over_wrong", gate), ("gold_accuracy", gold), ("accuracy_ceiling", ceiling)):
        if values:
            out |= {name: _mean(values), f"{name}_pairs": len(values)}
    return out


def _heights(row: dict[str, Any]) -> list[float]:
    """The responses' places, higher for better."""
    rank = {i: r for r, group in enumerate(row["ranking"]) for i in group}
    return [-float(rank[i]) for i in range(len(rank))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _won(a: float, b: float) -> float:
    return float(a > b) + 0.5 * (a == b)
