"""The loop: accumulation equals one large batch, resume is bit-equal, damaged checkpoints are passed over."""

import json

import pytest
import torch
from torch import nn

from tutelage.core.errors import DivergedError, RunError
from tutelage.core.rundir import RunDir, read_manifest
from tutelage.train.checkpoint import load_latest, save_checkpoint
from tutelage.train.loop import train
from tutelage.train.optim import OptimConfig, Optimizers


class Numbers:
    """Batches of unequal size, a function of the cursor."""

    def __init__(self):
        self.cursor = 0

    def __next__(self):
        self.cursor += 1
        g = torch.Generator().manual_seed(self.cursor)
        return {"x": torch.randn(2 + self.cursor % 3, 4, generator=g)}

    def state_dict(self):
        return {"cursor": self.cursor}

    def load_state_dict(self, state):
        self.cursor = state["cursor"]


def objective(model, batch):
    return (model(batch["x"]) - 1).pow(2).sum(), {"count": batch["x"].shape[0]}


def make(name="muon"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return model, Optimizers(model, OptimConfig(name=name, lr=1e-2, muon_lr=1e-2))


def go(path, steps, stop_at=None, **kw):
    model, optimizers = make()
    run = RunDir(path, "test", {"a": 1})
    run.open()
    if stop_at:
        original = optimizers.clip
        calls = iter(range(1, 10**6))

        def clip():
            if next(calls) > stop_at:
                raise KeyboardInterrupt
            return original()

        optimizers.clip = clip
    try:
        train(model, objective, Numbers(), optimizers, run, steps=steps, precision="fp32", save_every=4, **kw)
    except KeyboardInterrupt:
        pass
    finally:
        run.close()
    return model


def test_resume_is_bit_equal(tmp_path):
    whole = go(tmp_path / "whole", 20, accumulate=2)
    go(tmp_path / "parts", 20, stop_at=10, accumulate=2)
    parts = go(tmp_path / "parts", 20, accumulate=2)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.equal(a, b)


def test_accumulation_is_normalised_by_the_global_count(tmp_path):
    model, optimizers = make("adamw")
    grads = []
    original = optimizers.clip
    optimizers.clip = lambda: (grads.append([p.grad.clone() for p in optimizers.params]), original())[1]
    run = RunDir(tmp_path / "r", "test", {})
    run.open()
    train(model, objective, Numbers(), optimizers, run, steps=1, accumulate=3, precision="fp32")
    run.close()
    reference, _ = make("adamw")
    source = Numbers()
    x = torch.cat([next(source)["x"] for _ in range(3)])
    ((reference(x) - 1).pow(2).sum() / len(x)).backward()
    for got, p in zip(grads[0], reference.parameters()):
        torch.testing.assert_close(got, p.grad)


def test_nan_gradients_leave_the_weights_alone(tmp_path):
    model, optimizers = make("adamw")
    before = [p.clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    _, finite = optimizers.step(0.5)
    assert not finite and all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_damaged_checkpoint_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, {"a": torch.ones(2), "b": [1, {"c": torch.zeros(1)}], "d": {3: None}})
    save_checkpoint(tmp_path, 2, {"a": torch.ones(2) * 2})
    file = tmp_path / "step-2/state.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    step, state = load_latest(tmp_path)
    assert (
        step == 1 and state["a"].tolist() == [1, 1] and state["b"][1]["c"].tolist() == [0] and state["d"] == {3: None}
    )


def test_samples_and_evaluation_come_together_and_are_not_doubled_by_a_resume(tmp_path):
    seen = []

    def sample():
        return [{"prompt": "p", "response": "r"}]

    kw = {"eval_every": 5, "log_every": 5, "sample": sample, "evaluate": lambda: seen.append(1) or {"val_loss": 1.0}}
    go(tmp_path / "r", 20, stop_at=14, **kw)
    go(tmp_path / "r", 20, **kw)
    steps = [json.loads(line)["step"] for line in (tmp_path / "r/samples.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 15, 20]
    assert read_manifest(tmp_path / "r")["dtype"] == "fp32"


def test_gradients_that_stay_nan_end_the_run_with_its_name_and_a_sound_checkpoint(tmp_path):
    def broken(model, batch):
        loss, metrics = objective(model, batch)
        return loss * (float("nan") if batch["x"].shape[0] and source.cursor > 6 else 1), metrics

    model, optimizers = make("adamw")
    source = Numbers()
    run = RunDir(tmp_path / "r", "test", {})
    run.open()
    says = "step 11: loss is nan; 5 of the last 11 optimiser steps were left out. Saved at step 11 without it; "
    with pytest.raises(DivergedError, match=says):
        train(model, broken, source, optimizers, run, steps=20, precision="fp32", save_every=2)
    run.close()
    step, state = load_latest(tmp_path / "r/checkpoints")
    assert step == 11 and all(torch.isfinite(t).all() for t in state["model"].values())


def test_checkpoints_of_steps_that_the_run_went_back_behind_go(tmp_path, capsys):
    for step in (10, 20):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1) * step})
    (tmp_path / ".step-30.999999999.part").mkdir()  # a writer that was killed
    (tmp_path / "step-20/state.json").write_text("{")
    assert load_latest(tmp_path)[0] == 10
    assert "step-20: damaged checkpoint passed over" in capsys.readouterr().err
    save_checkpoint(tmp_path, 12, {"a": torch.ones(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-12"]


def test_a_run_that_reached_its_goal_takes_no_step_when_called_again(tmp_path):
    goal = {"stop_when": lambda row: row["step"] >= 10, "log_every": 5}
    first = go(tmp_path / "r", 40, **goal)
    again = go(tmp_path / "r", 40, **goal)
    assert load_latest(tmp_path / "r/checkpoints")[0] == 10
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_a_checkpoint_of_another_version_is_named(tmp_path):
    (tmp_path / "r").mkdir()
    save_checkpoint(tmp_path / "r/checkpoints", 3, {"model": {}, "optimizers": []})
    run = RunDir(tmp_path / "r", "test", {"a": 1})
    (tmp_path / "r/checkpoints").rename(tmp_path / "kept")
    run.open()
    run.close()
    (tmp_path / "kept").rename(tmp_path / "r/checkpoints")
    with pytest.raises(RunError, match="step-3: no 'loader' in it, another version wrote it; remove .*checkpoints to"):
        go(tmp_path / "r", 5)
