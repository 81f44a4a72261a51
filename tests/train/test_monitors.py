"""Monitors of reward hacking, and the early stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.train.early_stop import EarlyStop
from tutelage.train.monitors import diagnose, monitor, repetition


def test_rates_of_a_batch_of_answers() -> None:
    texts = ["Great question! The park.", "sorry, i cannot help with that.", "a b a b a b", "", "抱歉,无法提供"]
    found = monitor(texts)
    assert found["sycophancy_rate"] == pytest.approx(1 / 5)
    assert found["refusal_rate"] == pytest.approx(2 / 5)
    assert found["empty_rate"] == pytest.approx(1 / 5)
    assert found["distinct"] == 1.0
    assert monitor([]) == {}


@pytest.mark.parametrize("text,share", [("a b c d", 0), ("a b a b a b", 0.5), ("", 0), ("好好好好好好好好好", 6 / 7)])
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.text())
def test_any_text_has_a_repetition_between_0_and_1(text: str) -> None:
    assert 0 <= repetition(text) < 1
    assert all(0 <= rate <= 1 for rate in monitor([text]).values())


def test_a_diagnosis_names_what_moved() -> None:
    before = {"proxy": 0.0, "gold": 0.6, "length": 10.0, "entropy": 1.0, "distinct": 0.9, "repetition": 0.0}
    after = {"proxy": 2.0, "gold": 0.3, "length": 22.0, "entropy": 0.1, "distinct": 0.3, "repetition": 0.4}
    words = diagnose(before, after)
    assert words.startswith("over-optimised: the reward rose (0.00 to 2.00) while gold fell (0.60 to 0.30)")
    for sign in ("entropy collapsed", "became alike", "repeats itself", "longer"):
        assert sign in words
    assert diagnose(before, before) == "no sign of reward hacking"
    assert diagnose({}, {}) == ""


def test_early_stop_on_a_rise_and_fall_and_as_part_of_a_checkpoint() -> None:
    curve = [i / 10 for i in range(10)] + [0.9 - i / 20 for i in range(20)]
    whole = EarlyStop(patience=6, window=3)
    stopped = next(i for i, x in enumerate(curve, 1) if (whole.update(x), whole.stop)[1])
    assert 10 <= whole.best_step <= 12 and stopped == whole.best_step + 6
    cut = EarlyStop(patience=6, window=3)
    for x in curve[:7]:
        cut.update(x)
    again = EarlyStop(patience=6, window=3)
    again.load_state_dict(cut.state_dict())
    assert stopped == next(i for i, x in enumerate(curve[7:], 8) if (again.update(x), again.stop)[1])


def test_a_steady_rise_never_stops() -> None:
    rule = EarlyStop(patience=3, window=2)
    for i in range(50):
        rule.update(i)
        assert not rule.stop

