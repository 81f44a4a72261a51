"""The fits recover laws they were given; the best-of-n formula against sampling; where a run turned."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.core.overoptimisation import Fit, fit, over_optimised


@given(st.sampled_from(["best_of_n", "rl"]), st.floats(-2, 2), st.floats(-1, 1), st.floats(-3, 3))
def test_a_law_is_recovered_exactly_from_its_own_points(law: str, alpha: float, beta: float, start: float) -> None:
    truth = Fit(law, alpha, beta, start, 1.0, 0)  # type: ignore[arg-type]
    d = np.linspace(0, 5, 40)
    found = fit(law, d, [start + truth.gain(x) for x in d])  # type: ignore[arg-type]
    assert found is not None
    assert (found.alpha, found.beta, found.start) == pytest.approx((alpha, beta, start), abs=1e-8)


def test_the_turn_is_where_the_gain_is_greatest() -> None:
    for law in ("best_of_n", "rl"):
        made = Fit(law, 1.0, 0.4, 0.0, 1.0, 9)  # type: ignore[arg-type]
        assert made.turn is not None
        assert made.gain(made.turn) > max(made.gain(made.turn * f) for f in (0.9, 1.1))
    assert Fit("rl", 1.0, -0.1, 0.0, 1.0, 9).turn is None


def test_noise_lowers_r2_and_few_points_give_no_fit() -> None:
    rng = np.random.default_rng(0)
    d = np.linspace(0, 4, 60)
    clean = d * (1 - 0.5 * np.log(np.maximum(d, 1e-9)))
    found = fit("rl", d, clean + rng.normal(0, 0.3, 60))
    assert found is not None and 0.3 < found.r2 < 0.99
    assert fit("rl", [0.0, 1.0, 2.0], [0.0, 1.0, 1.0]) is None


def test_where_a_run_turned() -> None:
    gold = [0.1 * i for i in range(10)] + [0.9 - 0.1 * i for i in range(10)]
    found = over_optimised([math.sqrt(i) for i in range(20)], gold, window=1)
    assert found["gold_best"] == pytest.approx(0.9)
    assert found["gold_lost"] == pytest.approx(0.9)
    assert found["gold_best_distance"] == pytest.approx(3.0)
    assert over_optimised([], []) == {}
