"""The guard: what a spike is, what a step left out leaves alone, when a run ends, and resumes that change no bit."""

import json
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tutelage.core.errors import DivergedError
from tutelage.core.rundir import RunDir
from tutelage.train.checkpoint import load_latest
from tutelage.train.guard import Guard, GuardConfig
from tutelage.train.loop import train
from tutelage.train.optim import OptimConfig, Optimizers
from tutelage.train.update import Actors, PassConfig, passes


class Batches:
    """Batches that are a function of the cursor; the targets of those in `scaled` are multiplied."""

    def __init__(self, scaled):
        self.cursor, self.scaled, self.handed = 0, scaled, []

    def __next__(self):
        self.handed = [self.cursor * 2, self.cursor * 2 + 1]
        self.cursor += 1
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(self.cursor))
        return {"x": x, "y": self.scaled.get(self.cursor, 1.0)}

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state):
        self.cursor = state["cursor"]


def objective(model, batch):
    return (model(batch["x"]) - batch["y"]).pow(2).sum(), {"count": batch["x"].shape[0]}


class Dies(BaseException):
    pass


def go(path, scaled, steps=16, dies_at=0, **keys):
    """Train a small model on `Batches(scaled)`; returns its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizers, loader = Optimizers(model, OptimConfig(lr=1e-2, warmup=0, decay=0)), Batches(scaled)
    real = optimizers.clip

    def clip():
        if loader.cursor == dies_at:
            raise Dies
        return real()

    optimizers.clip = clip
    run = RunDir(path, "test", {"a": 1, "optimizer": {"lr": 1e-2}, "guard": {"window": 8, **keys}})
    run.open()
    try:
        train(model, objective, loader, optimizers, run, steps=steps, precision="fp32", save_every=3, log_every=1)
    finally:
        run.close()
    return [p.detach().clone() for p in model.parameters()]


def left_out(path):
    return [json.loads(line) for line in (path / "skipped.jsonl").read_text().splitlines()]


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


NAN = {6: float("nan")}


@given(st.lists(st.floats(-1e6, 1e6), min_size=8, max_size=8), st.floats(0.5, 50))
def test_the_limit_is_a_multiple_of_the_robust_deviation_above_the_median(values, spike):
    guard = Guard(GuardConfig(spike=spike, window=8))
    for value in values[:7]:
        guard.history.setdefault("x", []).append(value)
    assert guard.limit("x") == float("inf")  # not before the window is full
    guard.history["x"].append(values[7])
    middle = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(v - middle) for v in values)
    assert guard.limit("x") == pytest.approx(middle + spike * max(spread, abs(middle) / 10))
    assert Guard(GuardConfig(spike=0.0, window=8)).limit("x") == float("inf")


def test_a_step_left_out_moves_neither_weights_nor_optimiser(tmp_path):
    before = go(tmp_path / "five", {}, steps=5)
    after = go(tmp_path / "six", NAN, steps=6)
    assert equal(before, after)
    states = [load_latest(tmp_path / name / "checkpoints")[1]["optimizers"] for name in ("five", "six")]
    moments = [[v["exp_avg"] for v in one[0]["state"].values()] for one in states]
    assert equal(*moments)
    (row,) = left_out(tmp_path / "six")
    assert row == {"step": 6, "why": "loss is nan", "rows": [[10, 11]]}


def test_a_spike_is_left_out_and_counted_and_noise_is_not(tmp_path, capsys):
    go(tmp_path / "r", {12: 100.0}, spike=10)
    (row,) = left_out(tmp_path / "r")
    assert row["step"] == 12 and row["rows"] == [[22, 23]] and ", a spike above " in row["why"]
    assert "r: step 12 left out: loss is " in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [r.get("skipped_in_all", 0) for r in rows] == [0] * 11 + [1] * 5
    go(tmp_path / "off", {12: 100.0})
    assert not (tmp_path / "off/skipped.jsonl").exists()


def test_a_stop_saves_and_the_same_command_ends_as_if_it_had_skipped(tmp_path):
    with pytest.raises(DivergedError, match="step 6: loss is nan. Saved at step 6 without it; rows in skipped.jsonl"):
        go(tmp_path / "stops", NAN, on_nan="stop")
    assert load_latest(tmp_path / "stops/checkpoints")[0] == 6
    assert equal(go(tmp_path / "stops", NAN, on_nan="stop"), go(tmp_path / "skips", NAN))


def test_too_many_end_the_run_and_going_on_gives_the_whole_allowance_again(tmp_path):
    bad = {step: float("inf") for step in (4, 6, 8, 10, 12)}
    with pytest.raises(DivergedError, match="step 8: .*; 3 of the last 8 optimiser steps were left out"):
        go(tmp_path / "r", bad, skips=3)
    go(tmp_path / "r", bad, skips=3)
    assert [row["step"] for row in left_out(tmp_path / "r")] == [4, 6, 8, 10, 12]


@pytest.mark.parametrize("dies_at", [5, 7, 14])
def test_a_guarded_run_that_dies_ends_with_the_same_bits(tmp_path, dies_at):
    scaled = {**NAN, 13: 50.0}
    whole = go(tmp_path / "whole", scaled, spike=10)
    with pytest.raises(Dies):
        go(tmp_path / "broken", scaled, spike=10, dies_at=dies_at)
    assert equal(whole, go(tmp_path / "broken", scaled, spike=10))
    assert left_out(tmp_path / "broken") == left_out(tmp_path / "whole") and len(left_out(tmp_path / "whole")) == 2


def test_weights_that_are_not_finite_take_no_checkpoint_s_place(tmp_path):
    run = RunDir(tmp_path / "r", "test", {})
    guard = Guard(params=[torch.ones(2), torch.tensor([1.0, float("nan")])])
    with pytest.raises(DivergedError, match="r: weights are not finite after step 9, which is not saved"):
        guard.check_weights(run, 9)


def test_policy_and_critic_move_together_or_not_at_all():
    torch.manual_seed(0)
    policy, critic = nn.Linear(2, 1), nn.Linear(2, 1)
    forward = policy.forward
    actors = Actors(forward, forward, critic.forward, *(Optimizers(m, OptimConfig()) for m in (policy, critic)))
    actors.guard.begin(1, ["a", "b", "c", "d"])
    before = [p.clone() for m in (policy, critic) for p in m.parameters()]

    def minibatch(s):
        policy(torch.ones(2)).sum().backward()
        (critic(torch.ones(2)).sum() * (float("nan") if s.start else 1.0)).backward()
        return {"loss": 1.0}, 1.0

    made = passes(actors, 4, PassConfig(minibatches=2), 0.5, minibatch)
    after = [p.clone() for m in (policy, critic) for p in m.parameters()]
    assert made.skipped == 1 and not equal(before[:2], after[:2]) and not equal(before[2:], after[2:])
    assert actors.guard.faults == [{"step": 1, "why": "value_grad_norm is nan", "rows": ["c", "d"]}]
    passes(actors, 4, PassConfig(minibatches=1), 0.5, lambda _: minibatch(slice(1, 2)))
    assert equal(after, [p for m in (policy, critic) for p in m.parameters()])
