"""How far people who ranked the same answers agree: pairs of answers, Kendall's tau-b, Krippendorff's alpha.

Everything is counted between two rankings of one item by two people. Intervals (95%) come from resampling items with
replacement: comparisons within an item hang together, items do not. What alpha calls a unit, and why:

- `alpha_pairs`: a unit is a pair of answers of one item, its values are "first better" > "tie" > "second better"
  (ordinal: a tie lies between the two; `alpha_pairs_nominal` takes any difference as equally grave). Which answer is
  called the first is arbitrary, so every pair also enters the other way round; without that, chance agreement would
  depend on the names (Krippendorff's expected disagreement uses the values' frequencies). For two people who tie
  nothing this is 2 * agreement - 1, but for the small-sample correction.
- `alpha_ranks`: a unit is one answer among the set that was ranked, its value is the mid-rank scaled to 0 (best) .. 1
  (worst), ordinal. Only rankings of the same set of answers are compared: a place among four says little of one
  among nine. It counts a swap of neighbours less than one of best and worst.

Alpha: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; 1 is perfect, 0 is chance. It is computed here
from coincidence matrices, which add over items, so that a resample costs one matrix product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np

from tutelage.core.stats import bootstrap_weights, percentile_interval, ratio_interval

Array = np.ndarray[Any, Any]
Level = Literal["nominal", "ordinal"]


@dataclass(frozen=True)
class Ranked:
    """One person's ranking of one item's answers: `groups` of answer keys, best first; a group is a tie.

    It may leave answers out. `at` (a time, or seconds) is only needed for agreement over time.
    """

    item: Hashable
    annotator: Hashable
    groups: Sequence[Sequence[Hashable]]
    at: datetime | float | None = None


def agreement_report(
    rankings: Iterable[Ranked], windows: int = 5, samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Agreement over all, per annotator and over time, ready for JSON: None where nothing can be compared.

    Of someone's several rankings of one item the last given counts. Keys, each with `_low` and `_high`:
    `agreement` (of the pairs of answers that both people order, the share ordered alike; 0.5 is chance),
    `agreement_exact` (of all pairs, the share judged alike, ties being a judgement of their own), `kendall_tau` (tau-b,
    mean over two people's rankings of one item; one that ties everything has none), `agreement_majority` (one person
    with the majority of the others, over pairs that both order), and the alphas above. Without: `items`, `rankings`,
    `annotators`, `overlap_items` (ranked by several people), `comparisons` (what `agreement` counts).
    `per_annotator`: the same against the others, the lowest agreement first. `over_time`: in at most `windows`
    stretches of equally many rankings, how those made in the stretch agree with the others' of the same items.
    """
    last = {(one.item, one.annotator): one for one in rankings}
    by_item: dict[Hashable, list[Ranked]] = {}
    for one in last.values():
        by_item.setdefault(one.item, []).append(one)
    people = list(dict.fromkeys(one.annotator for one in last.values()))
    shared = [group for group in by_item.values() if len(group) > 1]
    table = _Table.of(shared, people)
    measure = _Measure(len(shared), samples, seed)
    everyone = np.full(len(table.item), 1.0)
    out: dict[str, Any] = {
        "items": len(by_item), "rankings": len(last), "annotators": len(people), "overlap_items": len(shared),
        **measure.compared(table, everyone), **measure.majority(table, None),
        **measure.alphas(shared),
    }  # fmt: skip
    out["per_annotator"] = sorted(
        (
            {
                "annotator": name,
                "rankings": sum(one.annotator == name for one in last.values()),
                **measure.compared(table, 1.0 * (table.first == i) + (table.second == i)),
                **measure.majority(table, i),
            }
            for i, name in enumerate(people)
        ),
        key=lambda line: 2.0 if line["agreement"] is None else line["agreement"],
    )
    times = [s for one in last.values() if (s := _seconds(one)) is not None]
    out["over_time"] = _over_time(table, measure, times, windows)
    return out


def agreement_of(
    judge: Iterable[Ranked], people: Iterable[Ranked], samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """A further judge (a model, a newcomer) beside each of the people who ranked the same items, as `agreement_report`
    counts one person beside the others: `items`, `comparisons`, `agreement`, `agreement_exact`, `kendall_tau`,
    `agreement_majority` (of all the people), with their intervals over items. Whose name the judge bears is ignored.
    """
    judged = {one.item: one for one in judge}
    by_item: dict[Hashable, list[Ranked]] = {}
    for one in {(one.item, one.annotator): one for one in people}.values():
        if one.item in judged:
            by_item.setdefault(one.item, []).append(one)
    names = list(dict.fromkeys(one.annotator for group in by_item.values() for one in group))
    stranger = object()
    shared = [[*group, replace(judged[item], annotator=stranger)] for item, group in by_item.items()]
    table = _Table.of(shared, [*names, stranger])
    measure, i = _Measure(len(shared), samples, seed), len(names)
    weight = 1.0 * (table.first == i) + (table.second == i)
    return {"items": len(shared), **measure.compared(table, weight), **measure.majority(table, i)}


def coincidences(counts: Array) -> Array:
    """Krippendorff's coincidence matrix [..., V, V] of how often each unit got each value, counts [..., units, V].

    A unit with fewer than two values counts nothing.
    """
    counts = np.asarray(counts, float)
    given = counts.sum(-1)
    weight = np.where(given > 1, 1 / np.maximum(given - 1, 1), 0.0)
    outer = np.einsum("...uc,...uk,...u->...ck", counts, counts, weight)
    return outer - np.einsum("...uc,...u,cd->...cd", counts, weight, np.eye(counts.shape[-1]))


def alpha(coincidence: Array, level: Level) -> Array:
    """Krippendorff's alpha [...] of coincidence matrices [..., V, V], values in their order; NaN where only one value
    occurs (nothing could have differed) or none does."""
    o = np.asarray(coincidence, float)
    n_c = o.sum(-1)
    n = n_c.sum(-1)
    if level == "nominal":
        distance = np.broadcast_to(1 - np.eye(o.shape[-1]), o.shape)
    else:  # squared number of values between the two, each end counted half
        upto = np.cumsum(n_c, -1) - n_c / 2
        distance = (upto[..., :, None] - upto[..., None, :]) ** 2
    observed = (o * distance).sum((-1, -2))
    expected = (n_c[..., :, None] * n_c[..., None, :] * distance).sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 1e-9, 1 - (n - 1) * observed / expected, np.nan)


def pair_signs(rankings: Sequence[Ranked]) -> Array:
    """[people, pairs of answers] of one item: 1 where the first of the pair is better, -1 where the second is, 0 for a
    tie, NaN where someone did not rank both."""
    places = _places(rankings)
    first, second = np.triu_indices(places.shape[1], 1)
    return np.sign(places[:, second] - places[:, first])


def _places(rankings: Sequence[Ranked]) -> Array:
    """[people, answers] of one item: the number of the group, NaN where an answer was left out."""
    answers = {a: n for n, a in enumerate(dict.fromkeys(a for one in rankings for group in one.groups for a in group))}
    places = np.full((len(rankings), len(answers)), np.nan)
    for line, one in zip(places, rankings):
        for number, group in enumerate(one.groups):
            line[[answers[a] for a in group]] = number
    return places


@dataclass(frozen=True)
class _Table:
    """A row for two people's rankings of one item (`first`, `second` are numbers of people), and `voted`: a row for
    one person's ranking against the majority of the others'."""

    item: Array
    first: Array
    second: Array
    alike: Array  # pairs of answers that both order the same way
    ordered: Array  # that both order
    exact: Array  # that both judge the same, ties included
    pairs: Array  # that both judged
    tau: Array  # tau-b, NaN where one of the two ties everything
    first_at: Array  # seconds, NaN unknown
    second_at: Array
    voted: Array  # [rankings, (item, person, alike, ordered)]

    @staticmethod
    def of(items: Sequence[Sequence[Ranked]], people: Sequence[Hashable]) -> _Table:
        number = {name: i for i, name in enumerate(people)}
        rows, voted = [np.zeros((0, 10))], [np.zeros((0, 4))]
        for at, rankings in enumerate(items):
            who = np.array([number[one.annotator] for one in rankings])
            when = np.array([np.nan if (s := _seconds(one)) is None else s for one in rankings])
            signs = pair_signs(rankings)
            a, b = np.triu_indices(len(who), 1)
            met = [matrix[a, b] for matrix in _meetings(signs)]
            rows.append(np.stack([np.full(len(a), at), who[a], who[b], *met, when[a], when[b]], 1))
            voted.append(np.stack([np.full(len(who), at), who, *_against_majority(signs)], 1))
        columns = np.concatenate(rows).T
        return _Table(*[*columns, np.concatenate(voted)])


def _meetings(signs: Array) -> tuple[Array, Array, Array, Array, Array]:
    """(alike, ordered, exact, pairs, tau-b), each [people, people], of one item's `pair_signs`."""
    seen = (~np.isnan(signs)).astype(float)
    s = np.nan_to_num(signs)
    strict, tied = np.abs(s), seen - np.abs(s)
    balance, ordered = s @ s.T, strict @ strict.T  # concordant - discordant, concordant + discordant
    alike = (ordered + balance) / 2
    untied = strict @ seen.T  # of the pairs that both judged, those that the first orders
    scale = np.sqrt(untied * untied.T)
    tau = np.where(scale > 0, balance / np.where(scale > 0, scale, 1), np.nan)
    return alike, ordered, alike + tied @ tied.T, seen @ seen.T, tau


def _against_majority(signs: Array) -> tuple[Array, Array]:
    """(alike, ordered), each [people]: someone's pairs beside the sign of the others' votes, where neither is 0."""
    s = np.nan_to_num(signs)
    others = np.sign(s.sum(0) - s)
    return ((s * others) > 0).sum(1).astype(float), ((s * others) != 0).sum(1).astype(float)


class _Measure:
    """The statistics of a table with their intervals, all from the same resamples of its items."""

    def __init__(self, items: int, samples: int, seed: int):
        self.items, self.weights = items, bootstrap_weights(items, samples, seed)

    def compared(self, table: _Table, weight: Array) -> dict[str, Any]:
        """What two rankings of one item have in common; a row of the table counts `weight` times."""
        has_tau = weight * ~np.isnan(table.tau)
        out: dict[str, Any] = {"comparisons": round(float((weight * table.ordered).sum()))}
        out |= self._ratio("agreement", table.item, weight * table.alike, weight * table.ordered)
        out |= self._ratio("agreement_exact", table.item, weight * table.exact, weight * table.pairs)
        return out | self._ratio("kendall_tau", table.item, has_tau * np.nan_to_num(table.tau), has_tau)

    def majority(self, table: _Table, person: int | None) -> dict[str, Any]:
        """One person (None: each in turn) against the majority of the others."""
        item, who, alike, ordered = table.voted.T
        weight = np.ones(len(who)) if person is None else 1.0 * (who == person)
        return self._ratio("agreement_majority", item, weight * alike, weight * ordered)

    def alphas(self, items: Sequence[Sequence[Ranked]]) -> dict[str, Any]:
        """Both units' alphas."""
        pairs = np.stack([_pair_coincidences(one) for one in items]) if items else np.zeros((0, 3, 3))
        ranks = _rank_coincidences(items)
        return {
            **self._alpha("alpha_pairs", pairs, "ordinal"),
            **self._alpha("alpha_pairs_nominal", pairs, "nominal"),
            **self._alpha("alpha_ranks", ranks, "ordinal"),
        }

    def _ratio(self, name: str, item: Array, tops: Array, bottoms: Array) -> dict[str, float | None]:
        sums = [np.bincount(item.astype(int), x, self.items) for x in (tops, bottoms)]
        return _named(name, ratio_interval(sums[0], sums[1], self.weights))

    def _alpha(self, name: str, by_item: Array, level: Level) -> dict[str, float | None]:
        value = float(alpha(by_item.sum(0), level))
        if np.isnan(value) or self.items < 2:
            return _named(name, (value, np.nan, np.nan))
        resampled = (self.weights @ by_item.reshape(len(by_item), -1)).reshape(-1, *by_item.shape[1:])
        return _named(name, (value, *percentile_interval(alpha(resampled, level))))


def _named(name: str, values: Sequence[float]) -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high")
    return {key: None if np.isnan(value) else float(value) for key, value in zip(names, values)}


def _pair_coincidences(rankings: Sequence[Ranked]) -> Array:
    """[3, 3] of one item, values -1, 0, 1; every pair of answers both ways round."""
    signs = pair_signs(rankings)
    counts = np.stack([(signs == value).sum(0) for value in (-1, 0, 1)], -1)
    one_way = coincidences(counts)
    return one_way + one_way[::-1, ::-1]


def _rank_coincidences(items: Sequence[Sequence[Ranked]]) -> Array:
    """[items, V, V] over the scaled mid-ranks that occur, in their order."""
    units: list[tuple[int, Array]] = []  # (item, [people, answers] of scaled mid-ranks)
    for number, rankings in enumerate(items):
        sets: dict[frozenset[Hashable], list[Ranked]] = {}
        for one in rankings:
            sets.setdefault(frozenset(a for group in one.groups for a in group), []).append(one)
        units += [(number, _mid_ranks(same)) for key, same in sets.items() if len(key) > 1 and len(same) > 1]
    values = np.unique(np.concatenate([ranks.ravel() for _, ranks in units])) if units else np.zeros(0)
    out = np.zeros((len(items), len(values), len(values)))
    for number, ranks in units:
        out[number] += coincidences((ranks.T[:, :, None] == values).sum(1))
    return out


def _mid_ranks(rankings: Sequence[Ranked]) -> Array:
    """[people, answers] of rankings of the same answers: mid-rank, scaled to 0 (best) .. 1 (worst)."""
    places = _places(rankings)
    better = (places[:, None, :] < places[:, :, None]).sum(2)
    equal = (places[:, None, :] == places[:, :, None]).sum(2) - 1
    return np.round((better + equal / 2) / (places.shape[1] - 1), 9)


def _over_time(table: _Table, measure: _Measure, times: Sequence[float], windows: int) -> list[dict[str, Any]]:
    edges = np.unique(np.quantile(times, np.linspace(0, 1, windows + 1))) if times else np.zeros(0)
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    out = []
    for number, (start, end) in enumerate(zip(edges, edges[1:])):
        final = number == len(edges) - 2  # the last stretch holds its end

        def inside(at: Array, start: float = start, end: float = end, final: bool = final) -> Array:
            return (at >= start) & ((at <= end) if final else (at < end))

        weight = 1.0 * inside(table.first_at) + inside(table.second_at)
        out.append({
            "start": float(start), "end": float(end), "rankings": int(inside(np.array(times)).sum()),
            **measure.compared(table, weight),
        })  # fmt: skip
    return out


def _seconds(one: Ranked) -> float | None:
    return one.at.timestamp() if isinstance(one.at, datetime) else one.at
