"""DPO, GRPO, RLOO, online DPO, best-of-n as stages: exact beginnings, learning at tiny scale, rewards of every kind."""

import json

import pytest
import torch

from tutelage.core.errors import ConfigError, DataError, RewardError
from tutelage.model.hub import load_model
from tutelage.pipeline.stages import launch, read_summary
from tutelage.train.checkpoint import saved_steps

RL = {"precision": "fp32", "prompts": 40, "updates": 2, "batch_size": 16, "minibatches": 2, "max_tokens": 6}


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def short(prompts, completions, **columns):
    return [-float(len(c)) / 20 for c in completions]


def with_a(prompts, completions, **columns):
    return [float(c.count("a")) for c in completions]


FAILING = []


def fails_third(prompts, completions, **columns):
    """From the third batch on it raises at whatever has more than one letter."""
    FAILING.append(len(completions))
    if len(FAILING) < 3:
        return [float(len(c)) for c in completions]
    return [1.0 if len(c) < 2 else c.no_such_thing for c in completions]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Preferences for the shorter of two answers, of both shapes."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = []
    for i in range(40):
        prompt = f"where is the hat number {i}?"
        rows.append({"prompt": prompt, "chosen": "in the park.", "rejected": "tom has the hat in the market and the"})
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(file)


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_first_minibatch_has_ratio_one_and_no_kl(chain, tmp_path, advantage, method):
    path, _ = launch("grpo", {
        **RL, "model": str(chain / "sft"), "reward": short, "advantage": advantage, "group_size": 4, "method": method,
        "epochs": 2, "out": str(tmp_path / "g"),
    })  # fmt: skip
    rows = rows_of(path)
    assert rows[0]["first_ratio_deviation"] == 0.0 and rows[0]["kl"] == 0.0
    assert all(r["optimizer_steps"] == 4 and r["skipped_steps"] == 0 and r["sampler_gap"] < 1e-3 for r in rows)
    assert rows[1]["kl"] != 0.0 and rows[1]["first_ratio_deviation"] == 0.0  # exact at every rollout


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_grpo_and_rloo_learn_a_plain_function(chain, tmp_path, advantage):
    path, _ = launch("grpo", {
        **RL, "model": str(chain / "sft"), "reward": with_a, "advantage": advantage, "group_size": 4, "updates": 25,
        "batch_size": 32, "kl_coef": 0.0, "optimizer": {"lr": 2e-3, "decay": 0.0}, "out": str(tmp_path / "g"),
    })  # fmt: skip
    rows = rows_of(path)
    start, end = (sum(r["proxy"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert end > 1.5 * start + 0.1, (start, end)
    assert rows[-1]["kl"] > 0.1 and "test_siblings.with_a#" in (path / "config.toml").read_text()


def test_online_dpo_learns_a_plain_function(chain, tmp_path):
    path, _ = launch("dpo", {
        **RL, "model": str(chain / "sft"), "data": "schoolroom:demo", "online": True, "reward": with_a,
        "group_size": 4, "updates": 25, "batch_size": 32, "optimizer": {"lr": 1e-3, "decay": 0.0},
        "out": str(tmp_path / "o"),
    })  # fmt: skip
    rows = rows_of(path)
    assert abs(rows[0]["margin"]) < 1e-5 and rows[0]["kl"] == 0.0 and 0 <= rows[0]["flat_groups"] < 1
    start, end = (sum(r["proxy"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert end > 1.3 * start, (start, end)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto"])
def test_preferences_are_learned(chain, tmp_path, pairs, loss):
    path, _ = launch("dpo", {
        "model": str(chain / "sft"), "data": pairs, "loss": loss, "updates": 20, "batch_size": 12, "eval_prompts": 4,
        "max_tokens": 6, "precision": "fp32", "out": str(tmp_path / loss),
    })  # fmt: skip
    first, last, summary = rows_of(path)[0], rows_of(path)[-1], read_summary(path)
    # before the first step the policy is the reference: log 2; (1 / (2 beta))^2; 1 - sigmoid(0)
    assert first["loss"] == pytest.approx({"dpo": 0.693147, "ipo": 25.0, "kto": 0.5}[loss], rel=1e-4)
    assert summary["val_loss_before"] == pytest.approx(first["loss"], rel=1e-4)
    assert summary["val_accuracy"] >= 0.9 and summary["val_loss"] < 0.8 * summary["val_loss_before"]
    assert summary["kl"] != 0 and "gold" not in summary
    up, down = ("reward_desirable", "reward_undesirable") if loss == "kto" else ("reward_best", "reward_worst")
    assert last[up] > last[down] + (0.02 if loss == "kto" else 0.05)


def test_ipo_of_averages_stops_at_its_target(chain, tmp_path, pairs):
    """A beta that one step can reach: the gap of the log ratios per token goes to 1 / (2 beta) and not beyond."""
    path, _ = launch("dpo", {
        "model": str(chain / "sft"), "data": pairs, "loss": "ipo", "average": True, "beta": 2.0, "updates": 40,
        "batch_size": 20, "eval_prompts": 0, "precision": "fp32", "out": str(tmp_path / "i"),
    })  # fmt: skip
    last = rows_of(path)[-1]
    assert (last["reward_best"] - last["reward_worst"]) / 2.0 == pytest.approx(0.25, abs=0.05)


def test_the_reference_is_remembered_and_lora_leaves_the_trunk(chain, tmp_path, pairs, monkeypatch):
    from tutelage.train import preferences

    path, _ = launch("dpo", {
        "model": str(chain / "sft"), "data": pairs, "updates": 3, "batch_size": 8, "method": "lora", "eval_every": 2,
        "eval_prompts": 4, "max_tokens": 4, "precision": "fp32", "out": str(tmp_path / "l"),
    })  # fmt: skip
    before, after = (load_model(p)[0].state_dict() for p in (chain / "sft", path))
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all("proj" in k for k in moved)
    file = path / "reference/logprobs.safetensors"
    known = file.read_bytes()
    (path / "summary.json").unlink()
    monkeypatch.setattr(preferences, "add_reference", lambda *_: 1 / 0)  # a resumed run reads its table
    launch("dpo", {
        "model": str(chain / "sft"), "data": pairs, "updates": 3, "batch_size": 8, "method": "lora", "eval_every": 2,
        "eval_prompts": 4, "max_tokens": 4, "precision": "fp32", "out": str(tmp_path / "l"),
    })  # fmt: skip
    assert file.read_bytes() == known and (path / "summary.json").is_file()


def test_thumbs_up_and_down_as_rows(chain, tmp_path):
    file = tmp_path / "thumbs.jsonl"
    rows = [
        {"prompt": f"where is {i}?", "completion": "in the park." if i % 2 else "no no no", "label": bool(i % 2)}
        for i in range(30)
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    path, _ = launch("dpo", {
        "model": str(chain / "sft"), "data": str(file), "loss": "kto", "updates": 10, "batch_size": 10, "max_tokens": 4,
        "eval_prompts": 0, "precision": "fp32", "undesirable_weight": 1.2, "out": str(tmp_path / "k"),
    })  # fmt: skip
    summary = read_summary(path)
    assert summary["val_accuracy"] == 1.0 and summary["train_rows"] + summary["held_rows"] == 30
    file.write_text('{"prompt": "a", "completion": "b", "label": "good"}\n')
    with pytest.raises(DataError, match=r"thumbs.jsonl:1: 'label' is a str; expected"):
        launch("dpo", {"model": str(chain / "sft"), "data": str(file), "loss": "kto", "out": str(tmp_path / "x")})


def test_several_rewards_and_an_ensemble(chain, tmp_path):
    reward = str(chain / "reward")
    given = {**RL, "model": str(chain / "sft"), "group_size": 4, "updates": 1}
    one, _ = launch("grpo", {**given, "reward": reward, "out": str(tmp_path / "one")})
    several = {"reward": [short, [reward, reward]], "reward_weights": [2.0, 0.5], "ensemble": "mean-std"}
    both, _ = launch("grpo", {**given, **several, "out": str(tmp_path / "both")})
    alone, row = rows_of(one)[0], rows_of(both)[0]
    assert row["reward/ensemble"] == pytest.approx(alone["proxy"]) and row["disagreement/ensemble"] == 0.0
    assert row["proxy"] == pytest.approx(2.0 * row["reward/short"] + 0.5 * alone["proxy"], abs=1e-5)
    assert "disagreement/ensemble" in read_summary(both) and "reward/short" not in alone
    manifest = json.loads((both / "manifest.json").read_text())
    assert [p["name"] for p in manifest["parents"]].count("reward") == 2


WRONG = [
    ({"reward": []}, "reward=[]: expected at least one reward"),
    ({"reward": [short, short], "reward_weights": [1.0]}, "reward_weights has 1 numbers for 2 rewards"),
    ({"reward": [short, [short, with_a]]}, "an inner list is an ensemble of at least 2 reward models"),
    ({"reward": short, "group_size": 3}, "batch_size=16 is no multiple of group_size=3"),
    ({"reward": short, "group_size": 1}, "group_size=1: Input should be greater than or equal to 2"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG)
def test_rewards_that_do_not_fit(chain, tmp_path, wrong, says):
    with pytest.raises(ConfigError) as error:
        launch("grpo", {**RL, "group_size": 4, "model": str(chain / "sft"), **wrong, "out": str(tmp_path / "x")})
    assert says in str(error.value)


MODES = [
    ({"online": True}, "no reward=; online=true needs one"),
    ({"online": True, "reward": short, "loss": "kto"}, "loss='kto' has no pairs"),
    ({"online": True, "reward": short, "held_out": "x"}, "held_out= has no meaning with online=true"),
    ({"group_size": 4}, "group_size= has no meaning with online=false"),
    ({"desirable_weight": 2.0}, "desirable_weight= belongs to loss='kto'"),
]


@pytest.mark.parametrize(("wrong", "says"), MODES)
def test_keys_of_another_mode_are_refused(chain, tmp_path, wrong, says):
    with pytest.raises(ConfigError) as error:
        launch("dpo", {"model": "x", "data": "y", **wrong, "out": str(tmp_path / "x")})
    assert says in str(error.value)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_reward_that_fails_late_leaves_the_step_before(chain, tmp_path, kind):
    FAILING.clear()
    given = {**RL, "model": str(chain / "sft"), "reward": fails_third, "updates": 6, "save_every": 0}
    given |= {"group_size": 4} if kind == "grpo" else {}
    with pytest.raises(RewardError, match=r"'fails_third' .* raised AttributeError: .*\(row \d+ of 16: prompt "):
        launch(kind, {**given, "out": str(tmp_path / "r")})
    assert saved_steps(tmp_path / "r/checkpoints") == [2]
    FAILING.clear()  # it works again, for two calls
    with pytest.raises(RewardError):
        launch(kind, {**given, "out": str(tmp_path / "r")})
    assert saved_steps(tmp_path / "r/checkpoints") == [2, 4]
    FAILING.clear()
    whole, _ = launch(kind, {**given, "updates": 2, "out": str(tmp_path / "whole")})
    assert rows_of(whole) and [r["kl"] for r in rows_of(tmp_path / "r")[:2]] == [r["kl"] for r in rows_of(whole)]


def test_best_of_n_keeps_the_best_and_says_how_far_it_went(chain, tmp_path):
    path, _ = launch("bestofn", {
        "model": str(chain / "sft"), "reward": with_a, "prompts": 10, "n": 8, "batch": 4, "max_tokens": 6,
        "missing_eos_penalty": 0.0, "out": str(tmp_path / "b"),
    })  # fmt: skip
    rows, summary = rows_of(path), read_summary(path)
    assert [r["step"] for r in rows] == [1, 2, 4, 8] and rows[0]["kl"] == 0
    proxies = [r["proxy"] for r in rows]
    assert proxies == sorted(proxies) and proxies[-1] > proxies[0] and summary["proxy"] == proxies[-1]
    assert summary["kl"] == pytest.approx(2.0794415 - 7 / 8) and {"gold", "gold_low"} <= set(summary)
    kept = [json.loads(line) for line in (path / "answers.jsonl").read_text().splitlines()]
    assert len(kept) == 10 and sum(r["score"] for r in kept) / 10 == pytest.approx(proxies[-1])
    assert all(r["score"] == r["completion"].count("a") and "ids" not in r for r in kept)


def even(prompts, completions, **columns):
    return [1.0] * len(completions)


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_rewards_that_tell_nothing_apart_move_nothing(chain, tmp_path, kind):
    """Without KL and text a group of equal scores has no gradient, and no pair."""
    given = {**RL, "model": str(chain / "sft"), "reward": even, "group_size": 4, "missing_eos_penalty": 0.0}
    given |= {"kl_coef": 0.0} if kind == "grpo" else {"online": True, "data": "schoolroom:demo"}
    path, _ = launch(kind, {**given, "out": str(tmp_path / "e")})
    rows = rows_of(path)
    assert all(r["flat_groups"] == 1.0 for r in rows) and (kind == "grpo" or rows[0]["optimizer_steps"] == 0)
    before, after = (load_model(p)[0].state_dict() for p in (chain / "sft", path))
    assert all(torch.equal(before[k], after[k]) for k in before)
