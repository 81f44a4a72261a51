"""Agreement between rankings: published examples, closed forms, brute force, and what must not matter."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from itertools import combinations

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau

from tutelage.core.agreement import Ranked, agreement_of, agreement_report, alpha, coincidences, pair_signs
from tutelage.core.stats import bootstrap_weights, kendall_tau, percentile_interval, ratio_interval

NAN = np.nan
FOUR_OBSERVERS = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
])  # fmt: skip
"""Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C; his results: 0.743 and 0.815."""


def alpha_of(ratings, level):
    values = np.unique(ratings[~np.isnan(ratings)])
    return float(alpha(coincidences((ratings.T[:, :, None] == values).sum(1)), level))


def rankings(rng, items, people, answers=4, ties=0.3, missing=0.2, skipped=0.2):
    """Random rankings with ties, of some of the answers, by some of the people."""
    out = []
    for item in range(items):
        for person in range(people):
            if rng.random() < skipped:
                continue
            kept = [a for a in range(answers) if rng.random() > missing]
            rng.shuffle(kept)
            groups = []
            for a in kept:
                if groups and rng.random() < ties:
                    groups[-1].append(a)
                else:
                    groups.append([a])
            out.append(Ranked(item, person, groups))
    return out


def test_krippendorffs_own_examples():
    assert round(alpha_of(FOUR_OBSERVERS, "nominal"), 3) == 0.743
    assert round(alpha_of(FOUR_OBSERVERS, "ordinal"), 3) == 0.815
    two = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], float)  # section A
    assert round(alpha_of(two, "nominal"), 3) == 0.095
    letters = ["aabbdcccedda", "babbbcccedd"]  # section B, of which the twelfth unit is "d" for the second observer
    many = np.array([[ord(c) for c in letters[0]], [ord(c) for c in letters[1] + "d"]], float)
    assert round(alpha_of(many, "nominal"), 3) == 0.692


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_alpha_is_that_of_the_krippendorff_package(level):
    rng = np.random.default_rng(0)
    for _ in range(30):
        ratings = rng.integers(0, 5, size=(4, 12)).astype(float)
        ratings[rng.random(ratings.shape) < 0.3] = NAN
        if (~np.isnan(ratings)).sum(0).max() < 2:
            continue
        expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
        assert alpha_of(ratings, level) == pytest.approx(expected, abs=1e-9)


def brute_force(given):
    """Every two people's rankings of an item, every two answers, counted one by one."""
    alike = ordered = exact = pairs = 0
    taus = []
    for one, other in combinations(given, 2):
        if one.item != other.item:
            continue
        places = [{a: n for n, g in enumerate(r.groups) for a in g} for r in (one, other)]
        both = sorted(set(places[0]) & set(places[1]))
        for a, b in combinations(both, 2):
            x, y = (np.sign(p[a] - p[b]) for p in places)
            pairs += 1
            exact += x == y
            ordered += bool(x and y)
            alike += bool(x and y and x == y)
        columns = [[p[a] for a in both] for p in places]
        if len(both) > 1 and all(len(set(c)) > 1 for c in columns):
            tau = kendalltau(*columns).statistic
            assert kendall_tau(*columns) == pytest.approx(tau)
            taus.append(tau)
    return alike / ordered, exact / pairs, sum(taus) / len(taus), ordered


def test_counts_and_tau_against_brute_force():
    for seed in range(5):
        given = rankings(random.Random(seed), items=12, people=4)
        agreement, exact, tau, ordered = brute_force(given)
        out = agreement_report(given, samples=50)
        assert out["agreement"] == pytest.approx(agreement) and out["comparisons"] == ordered
        assert out["agreement_exact"] == pytest.approx(exact) and out["kendall_tau"] == pytest.approx(tau)
        total = sum(line["comparisons"] for line in out["per_annotator"])
        assert total == 2 * ordered  # every comparison is one for either side
        weighted = sum(line["comparisons"] * line["agreement"] for line in out["per_annotator"] if line["comparisons"])
        assert weighted / total == pytest.approx(agreement)


def test_one_person_against_the_others_and_the_majority_by_hand():
    given = [
        Ranked("p", "ann", [[0], [1], [2]]),
        Ranked("p", "bob", [[0], [1], [2]]),
        Ranked("p", "cal", [[1], [0], [2]]),
        Ranked("q", "ann", [["x"], ["y"]]),  # nobody else: no comparison
    ]
    out = agreement_report(given, samples=20)
    assert (out["items"], out["overlap_items"], out["rankings"], out["annotators"]) == (2, 1, 4, 3)
    assert out["agreement"] == pytest.approx((3 + 2 + 2) / 9)
    lines = {line["annotator"]: line for line in out["per_annotator"]}
    assert out["per_annotator"][0]["annotator"] == "cal"
    assert lines["cal"]["agreement"] == pytest.approx(4 / 6) and lines["ann"]["agreement"] == pytest.approx(5 / 6)
    # ann: bob and cal cancel on (0, 1), and agree with her on the other two; cal has both against her on (0, 1)
    assert lines["ann"]["agreement_majority"] == 1.0 and lines["cal"]["agreement_majority"] == pytest.approx(2 / 3)
    assert out["agreement_low"] is None  # one item says nothing of other items
    more = agreement_of([Ranked("p", "model", [[0], [2], [1]]), Ranked("z", "model", [[0], [1]])], given, samples=20)
    assert more["comparisons"] == 9 and more["agreement"] == pytest.approx((2 + 2 + 1) / 9)
    assert more["agreement_majority"] == pytest.approx(2 / 3)


def test_alpha_of_pairs_of_two_people_who_tie_nothing_has_a_closed_form():
    rng = random.Random(3)
    given = rankings(rng, items=40, people=2, ties=0, missing=0, skipped=0)
    out = agreement_report(given, samples=20)
    n = 4 * out["comparisons"]  # two people, both ways round
    expected = 1 - 2 * (1 - out["agreement"]) * (n - 1) / n
    assert out["alpha_pairs"] == pytest.approx(expected) == out["alpha_pairs_nominal"]


def test_perfect_chance_and_nothing_to_compare():
    rng = random.Random(0)
    orders = {i: rng.sample(range(5), 5) for i in range(30)}
    same = [Ranked(i, p, [[a] for a in orders[i]]) for i in orders for p in range(3)]
    out = agreement_report(same, samples=50)
    for key in ("agreement", "agreement_exact", "kendall_tau", "alpha_pairs", "alpha_pairs_nominal", "alpha_ranks"):
        assert out[key] == pytest.approx(1) and out[f"{key}_low"] == pytest.approx(1)
    chance = agreement_report(rankings(rng, 600, 3, ties=0, missing=0, skipped=0), samples=100)
    for key, level in (("agreement", 0.5), ("kendall_tau", 0), ("alpha_pairs", 0), ("alpha_ranks", 0)):
        assert chance[f"{key}_low"] - 0.01 < level < chance[f"{key}_high"] + 0.01 and abs(chance[key] - level) < 0.04
    for nothing in ([], [Ranked(0, "a", [[0], [1]])], [Ranked(0, p, [[0, 1]]) for p in "ab"]):
        out = agreement_report(nothing, samples=10)
        assert out["agreement"] is None and out["kendall_tau"] is None and out["alpha_pairs"] is None
        assert out["over_time"] == []


def test_names_order_and_repeated_rankings_do_not_matter():
    given = rankings(random.Random(1), items=15, people=3)
    out = agreement_report(given, samples=30)
    renamed = [
        Ranked(f"item {r.item}", r.annotator, [[f"{'zyxw'[a]}" for a in reversed(g)] for g in r.groups]) for r in given
    ]
    again = agreement_report(renamed, samples=30)
    old = [Ranked(r.item, r.annotator, list(reversed(r.groups))) for r in given]  # what people then thought better of
    late = agreement_report([*old, *given], samples=30)
    for key in ("agreement", "agreement_exact", "kendall_tau", "alpha_pairs", "alpha_ranks", "agreement_majority"):
        assert again[key] == pytest.approx(out[key]) and late[key] == pytest.approx(out[key])
        assert again[f"{key}_low"] == pytest.approx(out[f"{key}_low"])


def test_ranks_forgive_neighbours_where_pairs_only_count():
    """Neighbours swapped in 9 answers against best and worst swapped: alpha_ranks tells them apart the more."""
    order = list(range(9))
    near, far = [1, 0, *order[2:]], [8, *order[1:8], 0]
    base = [Ranked(i, "a", [[x] for x in order]) for i in range(4)]
    found = {}
    for name, other in (("near", near), ("far", far)):
        found[name] = agreement_report([*base, *(Ranked(i, "b", [[x] for x in other]) for i in range(4))], samples=20)
    assert found["near"]["alpha_ranks"] > 0.97 and found["far"]["alpha_ranks"] < 0.1
    assert found["near"]["alpha_ranks"] > found["near"]["alpha_pairs"]


def test_agreement_over_time_shows_when_someone_drifts():
    rng = random.Random(5)
    start = datetime(2026, 1, 1)
    given = []
    for i in range(100):
        order = rng.sample(range(4), 4)
        given.append(Ranked(i, "steady", [[a] for a in order], start + timedelta(hours=i)))
        drifted = order if i < 50 else order[::-1]
        given.append(Ranked(i, "drifts", [[a] for a in drifted], start + timedelta(hours=i, minutes=1)))
    windows = agreement_report(given, windows=4, samples=50)["over_time"]
    assert [w["agreement"] for w in windows] == pytest.approx([1, 1, 0, 0])
    assert [w["rankings"] for w in windows] == [50] * 4 and windows[0]["start"] < windows[0]["end"]
    same_time = [Ranked(i, p, [[0], [1]], 7.0) for i in range(3) for p in "ab"]
    (only,) = agreement_report(same_time, samples=10)["over_time"]
    assert only["rankings"] == 6 and only["agreement"] == 1


def test_signs_of_pairs():
    signs = pair_signs([Ranked(0, "a", [["x"], ["y", "z"]]), Ranked(0, "b", [["y"], ["x"]])])
    np.testing.assert_array_equal(signs, [[1, 1, 0], [-1, NAN, NAN]])


def test_the_bootstrap_over_cases_covers_what_it_should():
    """Shares whose counts hang together within a case: the interval holds the truth about 95 times of 100, where one
    that takes the counts for independent holds it far less often."""
    rng = np.random.default_rng(0)
    weights, held, naive, runs = bootstrap_weights(80, 400), 0, 0, 200
    for _ in range(runs):
        share = rng.beta(2, 1, size=80)  # mean 2/3
        tops = rng.binomial(10, share)
        value, low, high = ratio_interval(tops, np.full(80, 10), weights)
        half = 1.96 * np.sqrt(value * (1 - value) / 800)
        held, naive = held + (low <= 2 / 3 <= high), naive + (abs(value - 2 / 3) <= half)
    assert 0.90 <= held / runs <= 0.99 and naive / runs < 0.8
    assert np.isnan(ratio_interval([0], [0])).all() and ratio_interval([1], [2])[0] == 0.5
    assert np.isnan(percentile_interval([NAN, NAN])).all() and bootstrap_weights(0, 3).shape == (3, 0)
    assert (bootstrap_weights(7, 50).sum(1) == 7).all()
