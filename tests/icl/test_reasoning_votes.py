"""Votes and the accuracy-against-paths curve, against counting by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.core.errors import DataError
from tutelage.icl.reasoning.problems import Problem
from tutelage.icl.reasoning.settings import Path, ProblemResult
from tutelage.icl.reasoning.votes import curve, expected_majority, log_weights, sampled_votes, vote

KEYS = st.lists(st.sampled_from(["3", "4", "5", None]), min_size=1, max_size=7)


def first_of_most(keys):
    """The answer of most votes, the first drawn where some tie."""
    found = [k for k in keys if k is not None]
    return max(dict.fromkeys(found), key=found.count) if found else None


@given(KEYS)
def test_majority_is_counting(keys):
    winner, share = vote(keys, [0.0] * len(keys))
    assert winner == first_of_most(keys)
    assert share == pytest.approx(keys.count(winner) / len(keys) if winner is not None else 0.0)


@given(st.lists(st.tuples(st.sampled_from("345"), st.floats(-900, 0), st.integers(1, 50)), min_size=1, max_size=9))
def test_weighted_votes_are_sums_of_probabilities(paths):
    for weighting in ("normalised", "unnormalised"):
        logs = log_weights([(log, n) for _, log, n in paths], weighting)
        top = max(logs)  # in logs: exp(-900) is 0 in float64
        sums = {}
        for (key, log, n), _ in zip(paths, logs):
            each = log / n if weighting == "normalised" else log
            sums[key] = sums.get(key, 0.0) + math.exp(each - top)
        winner, share = vote([k for k, _, _ in paths], logs)
        assert sums[winner] == pytest.approx(max(sums.values()))
        assert share == pytest.approx(max(sums.values()) / sum(sums.values()))


def test_a_weighted_vote_can_overrule_the_majority():
    keys, paths = ["1", "1", "2"], [(-8.0, 4), (-8.0, 4), (-1.0, 4)]
    assert vote(keys, log_weights(paths, "majority"))[0] == "1"
    assert vote(keys, log_weights(paths, "normalised"))[0] == "2"
    assert vote(keys, log_weights(paths, "unnormalised"))[0] == "2"
    long = [(-2.0, 100), (-1.0, 1)]  # per token the long path is the likelier one
    assert vote(["1", "2"], log_weights(long, "normalised"))[0] == "1"
    assert vote(["1", "2"], log_weights(long, "unnormalised"))[0] == "2"


def test_missing_log_probabilities_are_said():
    assert log_weights([(None, None)], "majority") == [0.0]
    with pytest.raises(DataError, match="log-probability, and the server gave none.*majority"):
        log_weights([(-1.0, 3), (None, 3)], "normalised")


@settings(max_examples=60, deadline=None)
@given(KEYS, st.sets(st.sampled_from(["3", "4", "5"])))
def test_the_exact_curve_is_that_of_all_orders(keys, right):
    n = len(keys)
    wanted = np.zeros(n)
    orders = list(itertools.permutations(keys))
    for order in orders:
        wanted += [first_of_most(order[:m]) in right for m in range(1, n + 1)]
    names = [k for k in dict.fromkeys(keys) if k is not None]
    found = expected_majority([keys.count(k) for k in names], [k in right for k in names], keys.count(None))
    assert np.allclose(found, wanted / len(orders), atol=1e-12)


def test_the_exact_curve_at_forty_paths():
    chances = expected_majority([18, 12, 6, 1, 1], [True, False, False, False, False], unread=2)
    assert len(chances) == 40
    assert chances[0] == pytest.approx(18 / 40) and chances[-1] == 1.0
    rng = np.random.default_rng(0)
    keys = ["a"] * 18 + ["b"] * 12 + ["c"] * 6 + ["d", "e", None, None]
    right = {key: key == "a" for key in "abcde"}
    sampled = sampled_votes(keys, [0.0] * 40, right, 4000, rng)
    assert max(abs(a - b) for a, b in zip(chances, sampled)) < 4 * 0.5 / math.sqrt(4000)  # four standard errors
    with pytest.raises(DataError, match="at most 512"):
        expected_majority([600], [True])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["1", "2", None]), st.floats(-9, -0.1)), min_size=1, max_size=6))
def test_the_weighted_curve_is_that_of_all_orders(paths):
    keys, logs = [k for k, _ in paths], [log for _, log in paths]
    right = {"1": True, "2": False}
    found = sampled_votes(keys, logs, right, 3000, np.random.default_rng(1))
    wanted = np.zeros(len(paths))
    orders = list(itertools.permutations(range(len(paths))))
    for order in orders:
        for m in range(1, len(paths) + 1):
            sums = {k: sum(math.exp(logs[i]) for i in order[:m] if keys[i] == k) for k in ("1", "2")}
            tied = [k for k in sums if math.isclose(sums[k], max(sums.values()), rel_tol=1e-12) and sums[k] > 0]
            wanted[m - 1] += tied.count("1") / max(1, len(tied))
    assert np.allclose(found, wanted / len(orders), atol=0.06)



def test_the_curve_over_problems():
    three = Problem("how many?", "3")
    good = ProblemResult(three, "3", True, tuple(Path("", "3") for _ in range(4)))
    mixed = ProblemResult(three, "3", True, (Path("", "3"), Path("", "4"), Path("", "3"), Path("", None)))
    failed = ProblemResult(three, None, False, error="refused")
    points = curve([good, mixed, failed])
    assert [p.paths for p in points] == [1, 2, 3, 4]
    assert points[0].accuracy == pytest.approx((1 + 0.5 + 0) / 3)
    assert points[-1].accuracy == pytest.approx(2 / 3)
    assert all(p.low <= p.accuracy <= p.high for p in points)
    assert curve([failed]) == []
