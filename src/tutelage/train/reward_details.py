"""The reward model's report beyond its summary: reliability by margin, length, and the people whose labels it learnt.

Shares have 95% intervals that resample prompts: pairs of one prompt hang together. docs/reward-models.md says what each
number means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.core.agreement import Ranked, agreement_of, agreement_report
from tutelage.core.stats import (
    bootstrap_weights,
    calibration_error,
    correlation,
    percentile_interval,
    ratio_interval,
    reliability,
)
from tutelage.text.rankings import judgements, ranked, ranking_from_scores, ranking_key
from tutelage.train.reward_report import Truth, better_pairs, reward_report

Row = dict[str, Any]
Array = np.ndarray[Any, Any]
BINS = 10
"""Of the reliability curve and of lengths, each with equally many pairs."""
SAMPLES = 1000
"""Resamples of prompts."""


def full_report(
    rows: Sequence[Row],
    scores: Sequence[Sequence[float]],
    truths: Sequence[Truth | None],
    longer: bool = True,
    people: Sequence[Row] = (),
) -> dict[str, Any]:
    """{"summary": reward_report's numbers, "reliability": rows of the curve, "calibration_error_equal_bins",
    "length": {...}, "people": {...} or None}, ready for JSON.

    `people`: the rankings of single annotators ("annotator"), not joined; those of other prompts are ignored. What is
    said of people goes into the summary too: people_agreement (of one person with another) beside model_agreement (of
    the model with one person, on the same prompts).
    """
    pairs = _Pairs.of(rows, scores)
    summary = reward_report(rows, scores, truths, longer)
    between = people_report(rows, scores, people, truths)
    if between:
        summary |= between["summary"]
    curve, error = reliability_by_margin(pairs)
    return {
        "summary": summary,
        "prompts": len(rows),
        "reliability": curve,
        "calibration_error_equal_bins": error,
        "length": length_report(rows, scores, pairs),
        "people": between,
    }


@dataclass(frozen=True)
class _Pairs:
    """Arrays [pairs] over the pairs that the labels order."""

    prompts: int
    prompt: Array
    margin: Array  # score of the better response minus that of the worse
    share: Array  # of the people who hold it for the better
    longer: Array  # characters of the better minus those of the worse

    @staticmethod
    def of(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> _Pairs:
        found = [
            (n, score[a] - score[b], share, len(row["responses"][a]) - len(row["responses"][b]))
            for n, (row, score) in enumerate(zip(rows, scores, strict=True))
            for a, b, share in better_pairs(row)
        ]
        prompt, margin, share, longer = np.array(found, float).reshape(-1, 4).T
        return _Pairs(len(rows), prompt.astype(int), margin, share, longer)

    def sums(self, values: Array) -> Array:
        """Sums over each prompt's pairs."""
        return np.bincount(self.prompt, values, self.prompts)

    def share_of(self, values: Array, where: Array, weights: Array) -> dict[str, float | None]:
        """The mean of `values` over the pairs `where`, with its interval."""
        value, low, high = ratio_interval(self.sums(values * where), self.sums(1.0 * where), weights)
        return {"value": _real(value), "low": _real(low), "high": _real(high), "pairs": int(where.sum())}


def reliability_by_margin(pairs: _Pairs) -> tuple[list[dict[str, Any]], float | None]:
    """(the curve, its expected calibration error) of P(preferred) = sigmoid(margin), read as the confidence of the
    response that the model prefers (1/2 to 1), in bins of equally many pairs.

    A row: "margin" (mean |difference of scores|), "confidence" (what the model says), "frequency" (how often, or by
    what share of the people, that response is preferred) with its interval, "pairs". A calibrated model has confidence
    and frequency equal; noise in the labels belongs to what it has to predict.
    """
    if not len(pairs.margin):
        return [], None
    size = np.abs(pairs.margin)
    confident = 1 / (1 + np.exp(-np.minimum(size, 50.0)))
    outcome = np.where(pairs.margin > 0, pairs.share, np.where(pairs.margin < 0, 1 - pairs.share, 0.5))
    edges = np.unique(np.quantile(confident, np.linspace(0, 1, BINS + 1))).tolist()
    edges = edges if len(edges) > 1 else edges * 2
    weights, rows = bootstrap_weights(pairs.prompts, SAMPLES), []
    for found in reliability(confident.tolist(), outcome.tolist(), edges):
        last = found["high"] == edges[-1]
        where = (confident >= found["low"]) & ((confident <= found["high"]) if last else (confident < found["high"]))
        share = pairs.share_of(outcome, where, weights)
        rows.append({
            "margin": float(size[where].mean()), "confidence": found["confidence"], "frequency": found["frequency"],
            "low": share["low"], "high": share["high"], "pairs": share["pairs"],
        })  # fmt: skip
    return rows, calibration_error(confident.tolist(), outcome.tolist(), edges=edges)


def length_report(rows: Sequence[Row], scores: Sequence[Sequence[float]], pairs: _Pairs) -> dict[str, Any]:
    """How far the model goes by length (in characters). Keys:

    "correlation" of score and length, "correlation_within" prompts (each prompt's means taken away); accuracy where
    the people prefer the longer response ("longer_preferred") and where they prefer the shorter ("shorter_preferred"):
    who only goes by length has 1 in one of them and 0 in the other; "balanced": their mean, which then is 1/2;
    "length_removed": accuracy of the scores less what a straight line in length says of them within prompts ("slope",
    per 100 characters); "curve": accuracy by how much longer the preferred response is.
    """
    within = [(np.array(score), np.array([len(t) for t in row["responses"]])) for row, score in zip(rows, scores)]
    score = np.concatenate([s - s.mean() for s, _ in within]) if within else np.zeros(0)
    length = np.concatenate([n - n.mean() for _, n in within]) if within else np.zeros(0)
    slope = float(score @ length / spread) if (spread := float(length @ length)) > 0 else 0.0
    won = (pairs.margin > 0) + 0.5 * (pairs.margin == 0)
    rest = pairs.margin - slope * pairs.longer
    weights = bootstrap_weights(pairs.prompts, SAMPLES)
    sides = {"longer_preferred": pairs.longer > 0, "shorter_preferred": pairs.longer < 0}
    out: dict[str, Any] = {name: pairs.share_of(won, where, weights) for name, where in sides.items()}
    everywhere = np.ones(len(won), bool)
    out["length_removed"] = pairs.share_of((rest > 0) + 0.5 * (rest == 0), everywhere, weights)
    out["balanced"] = _balanced(pairs, won, list(sides.values()), weights)
    raw = [x for _, n in within for x in n.tolist()]
    return {
        **out,
        "correlation": correlation([x for s in scores for x in s], raw),
        "correlation_within": correlation(score.tolist(), length.tolist()),
        "slope": 100 * slope,
        "curve": _by_length(pairs, won, weights),
    }


def _balanced(pairs: _Pairs, won: Array, sides: Sequence[Array], weights: Array) -> dict[str, Any]:
    """The mean of the accuracies on both sides, with its interval."""

    def mean(weights: Array) -> Array:
        parts = []
        for where in sides:
            below = weights @ pairs.sums(1.0 * where)
            parts.append(weights @ pairs.sums(won * where) / np.where(below > 0, below, np.nan))
        return (parts[0] + parts[1]) / 2

    value = float(mean(np.ones((1, pairs.prompts)))[0])
    low, high = percentile_interval(mean(weights)) if value == value else (np.nan, np.nan)
    return {"value": _real(value), "low": _real(low), "high": _real(high), "pairs": int(sum(s.sum() for s in sides))}


def _by_length(pairs: _Pairs, won: Array, weights: Array) -> list[dict[str, Any]]:
    """Accuracy in bins of equally many pairs by how much longer the preferred response is."""
    if not len(won):
        return []
    edges = np.unique(np.quantile(pairs.longer, np.linspace(0, 1, BINS + 1)))
    numbers = np.clip(np.searchsorted(edges, pairs.longer, side="right") - 1, 0, max(0, len(edges) - 2))
    return [
        {"longer_by": float(pairs.longer[numbers == b].mean()), **pairs.share_of(won, numbers == b, weights)}
        for b in np.unique(numbers)
    ]


def people_report(
    rows: Sequence[Row],
    scores: Sequence[Sequence[float]],
    people: Sequence[Row],
    truths: Sequence[Truth | None] = (),
) -> dict[str, Any] | None:
    """The model beside the people who ranked the same responses; None where no row names an annotator.

    "between": how the people agree (core/agreement.py); "model": the model with each of them, counted as one more
    person, on all prompts; "model_overlap": on the prompts that several people ranked, which is what "between" stands
    on; "truth_overlap": there, the true scores with each of them, where known; "per_annotator": each person's agreement
    with the others, and the model's with that person ("model_agreement"), on all that the person ranked.
    """
    asked = {ranking_key(row) for row in rows}
    votes = [vote for vote in judgements(people) if vote.item in asked]
    if not votes:
        return None
    model = _as_judge(rows, scores)
    between = agreement_report(votes, samples=SAMPLES)
    who: dict[Any, set[Any]] = {}
    for vote in votes:
        who.setdefault(vote.item, set()).add(vote.annotator)

    def where_several(judge: Sequence[Ranked]) -> dict[str, Any]:
        return agreement_of([one for one in judge if len(who.get(one.item, ())) > 1], votes, SAMPLES)

    overlap = where_several(model)
    known = [(row, truth.gold) for row, truth in zip(rows, truths) if truth]
    truth = where_several(_as_judge(*zip(*known))) if known else None
    everywhere = agreement_of(model, votes, SAMPLES)
    lines = []
    for line in between.pop("per_annotator"):
        own = agreement_of(model, [vote for vote in votes if vote.annotator == line["annotator"]], SAMPLES)
        lines.append(line | {f"model_{key}": own[key] for key in ("comparisons", *_bounded("agreement"))})
    between.pop("over_time")  # rows of a file bear no times
    summary: dict[str, Any] = {"annotators": between["annotators"]}
    if between["agreement"] is not None:
        summary |= {f"people_{key}": between[key] for key in _bounded("agreement")}
        summary["people_alpha"] = between["alpha_pairs"]
    source = everywhere if between["agreement"] is None else overlap
    summary |= {f"model_{key}": source[key] for key in _bounded("agreement") if source[key] is not None}
    return {
        "summary": {key: value for key, value in summary.items() if value is not None},
        "between": between,
        "model": everywhere,
        "model_overlap": overlap if overlap["items"] else None,
        "truth_overlap": truth if truth and truth["items"] else None,
        "per_annotator": lines,
    }


def _as_judge(rows: Sequence[Row], scores: Sequence[Sequence[float]]) -> list[Ranked]:
    """The order that the scores give to each row's responses, equal scores tied."""
    return [ranked({**row, "ranking": ranking_from_scores(score)}, "") for row, score in zip(rows, scores, strict=True)]


def _bounded(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _real(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
