"""The whole chain at smoke scale: every stage runs, a finished run is kept, a changed key re-runs its dependants."""

import json
from pathlib import Path

import pytest

from tutelage.core.errors import ConfigError
from tutelage.pipeline import run_recipe
from tutelage.pipeline.stages import launch

RECIPE = Path(__file__).parents[2] / "recipes/smoke.toml"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run_recipe(RECIPE, {"out": str(tmp_path_factory.mktemp("runs") / "smoke")})


def test_every_stage_ran_and_reported(smoke):
    summary = json.loads((smoke / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == [
        "tokenizer",
        "prepare",
        "pretrain",
        "sft",
        "rank",
        "reward",
        "ppo",
        "reward_plain",
        "ppo_control",
    ]
    assert len(summary["answers"]) == 10 and {"base", "sft", "rlhf", "prompt"} <= set(summary["answers"][0])
    results = summary["results"]
    assert all(
        0 <= results[f"{m}_{k}"] <= 1 for m in ("sft", "rlhf", "control") for k in ("gold_sampled", "correct_greedy")
    )
    assert {"reward_accuracy", "reward_plain_accuracy", "ppo_kl", "ppo_text_loss", "ppo_text_loss_before"} <= set(
        results
    )
    assert (smoke / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_what_the_model_says_is_written_beside_the_metrics(smoke, stage):
    rows = [json.loads(line) for line in (smoke / stage / "samples.jsonl").read_text().splitlines()]
    assert len(rows) >= 3 and all({"step", "prompt", "response"} <= set(row) and row["prompt"] for row in rows)


def test_first_minibatch_has_ratio_one_and_no_kl(smoke):
    rows = [json.loads(line) for line in (smoke / "ppo/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["first_ratio_deviation"] == 0.0
    assert rows[0]["kl"] == 0.0
    assert all(row["optimizer_steps"] == 2 for row in rows)


def test_second_run_keeps_everything_and_a_changed_key_reruns_dependants(smoke):
    before = json.loads((smoke / "summary.json").read_text())["results"]
    run_recipe(RECIPE, {"out": str(smoke)})
    summary = json.loads((smoke / "summary.json").read_text())
    assert {s["status"] for s in summary["stages"]} == {"kept"} and summary["results"] == before
    run_recipe(RECIPE, {"out": str(smoke), "reward": {"steps": 3}})
    summary = json.loads((smoke / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"] if s["status"] == "run"] == ["reward", "ppo"]


def test_unknown_keys_and_names(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'updates'"):
        launch("ppo", {"model": "x", "reward": "y", "update": 3, "out": str(tmp_path / "x")})
    recipe = tmp_path / "r.toml"
    recipe.write_text('[prepare]\ntokenizer = "@tokeniser"\n')
    with pytest.raises(ConfigError, match="names no earlier stage"):
        run_recipe(recipe, {"out": str(tmp_path / "out")})
