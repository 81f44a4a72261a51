"""The three steps on the real stories260K, told to write stories: recipes/real/stories.toml with fewer updates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.pipeline import run_recipe
from tutelage.pipeline.stages import read_summary
from tutelage.train.rewards import load_function

pytestmark = pytest.mark.real
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "real" / "stories.toml"
RULE = RECIPE.with_suffix(".py")


def test_the_rule_gives_real_scenes_the_full_score_and_marks_each_fault(real_data, monkeypatch):
    monkeypatch.setenv("TUTELAGE_DATA", str(real_data))
    rows = list(load_function(f"{RULE}:held")())
    assert len(rows) > 150
    columns = {key: [row[key] for row in rows] for key in ("name", "words", "speech")}
    score = load_function(f"{RULE}:score")
    real = [row["completion"] for row in rows]
    assert sum(score([], real, **columns)) / len(rows) > 0.95
    faults = {
        "unfinished": [text.rstrip('."!?') for text in real],
        "another's name": [text.replace(row["name"], "Zog") for text, row in zip(real, rows)],
        "said twice": [f"{text} {text}" for text in real],
        "cut": [" ".join(text.split()[:6]) + "." for text in real],
        "another's story": real[1:] + real[:1],
    }
    for fault, texts in faults.items():
        assert sum(score([], texts, **columns)) / len(rows) < 0.85, fault
    trained = {row["completion"] for row in load_function(f"{RULE}:train")()}
    assert not trained & set(real)


def test_the_true_function_rises_and_the_text_is_not_forgotten(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_DATA", str(real_data))
    out = run_recipe(RECIPE, {
        "out": str(tmp_path / "run"), "rank": {"prompts": 700, "held_out": 80}, "reward": {"steps": 40},
        "ppo": {"updates": 14}, "compare": {"prompts": 128},
    })  # fmt: skip
    sft, ppo = read_summary(out / "sft"), read_summary(out / "ppo")
    assert sft["val_loss"] < sft["val_loss_before"]
    first = json.loads((out / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["first_ratio_deviation"] == 0.0 and first["kl"] == 0.0
    found = json.loads((out / "summary.json").read_text())["results"]
    print({key: round(value, 3) for key, value in found.items() if key.startswith(("sft_gold", "rlhf"))})
    print("text loss", {"before": sft["val_text_loss_before"], "sft": sft["val_text_loss"], "ppo": ppo["text_loss"]})
    assert found["rlhf_gain_sampled_low"] > 0  # the whole 95% interval, paired by prompt, is above zero
    assert ppo["text_loss"] < sft["val_text_loss_before"] + 0.1
