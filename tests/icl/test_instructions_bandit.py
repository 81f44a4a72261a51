"""The bandit: its bounds and books against plain arithmetic, and its thrift on Bernoulli arms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.instructions import upper_confidence


def table_of(seed: int, arms: int = 30, examples: int = 200) -> np.ndarray:
    """0/1 values of arms whose true means are spread evenly over 0.2 to 0.8, in random order."""
    rng = np.random.default_rng(seed)
    true = rng.permutation(np.linspace(0.2, 0.8, arms))
    return (rng.random((arms, examples)) < true[:, None]).astype(float)


def test_every_round_pulls_the_highest_bounds_and_keeps_right_books():
    table, rounds = table_of(0, arms=9, examples=30), []

    def pull(asked):
        rounds.append(asked)
        return [table[arm, example] for arm, example in asked]

    found = upper_confidence(pull, 9, 30, rounds=12, samples=4, c=0.7, seed=1)
    seen: dict[int, list[float]] = {arm: [] for arm in range(9)}
    for asked in rounds:
        total = sum(len(values) for values in seen.values())
        bound = {
            arm: sum(v) / len(v) + 0.7 * math.sqrt(math.log(total) / len(v)) if v else math.inf
            for arm, v in seen.items()
            if len(v) < 30
        }
        chosen = list(dict.fromkeys(arm for arm, _ in asked))
        assert len(chosen) == 3 and len(asked) == sum(min(4, 30 - len(seen[arm])) for arm in chosen)
        assert min(bound[arm] for arm in chosen) >= max(b for arm, b in bound.items() if arm not in chosen) - 1e-12
        for arm, example in asked:
            seen[arm].append(table[arm, example])
    assert len(rounds) == 12
    assert found.counts.tolist() == [len(v) for v in seen.values()]
    assert found.means == pytest.approx([sum(v) / len(v) for v in seen.values()], abs=1e-12)
    pulled = [pair for asked in rounds for pair in asked]
    assert len(set(pulled)) == len(pulled)


def test_it_ends_when_everything_was_seen_and_is_then_exact():
    table, calls = table_of(2, arms=4, examples=7), []

    def pull(asked):
        calls.append(len(asked))
        return [table[pair] for pair in asked]

    found = upper_confidence(pull, 4, 7, rounds=1000, seed=0)
    assert sum(calls) == 28 and len(calls) < 20
    assert found.means == pytest.approx(table.mean(axis=1), abs=1e-12)


def test_arms_never_pulled_have_no_mean_and_the_first_round_is_random():
    found = [upper_confidence(lambda asked: [1.0] * len(asked), 9, 5, rounds=1, seed=s) for s in range(12)]
    assert all(np.isnan(f.means).sum() == 6 for f in found)
    assert len({tuple(f.counts) for f in found}) > 3


def test_it_finds_the_best_arm_with_fewer_evaluations_than_uniform():
    """How good the arm is that each ends with, over 60 bandits; uniform has twice the evaluations."""
    regret = {"ucb": [], "uniform": []}
    for seed in range(60):
        table = table_of(seed)
        true = table.mean(axis=1)
        ucb = upper_confidence(lambda asked, t=table: [t[p] for p in asked], 30, 200, rounds=20, seed=seed)
        assert ucb.counts.sum() == 1000
        uniform = table[:, : 2 * 1000 // 30].mean(axis=1)
        regret["ucb"].append(true.max() - true[int(np.nanargmax(ucb.means))])
        regret["uniform"].append(true.max() - true[int(uniform.argmax())])
    assert np.mean(regret["ucb"]) < np.mean(regret["uniform"])


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"share": 0.0}, {"share": 1.5}, {"samples": 0}, {"c": -1.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        upper_confidence(lambda asked: [], 3, 3, **wrong)


def test_nothing_to_pull():
    with pytest.raises(DataError, match="0 examples"):
        upper_confidence(lambda asked: [], 3, 0)
