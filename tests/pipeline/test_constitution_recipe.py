"""recipes/constitution.toml at a scale of seconds: every stage runs in turn, and the report shows conduct."""

import json
from pathlib import Path

from tutelage.pipeline import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes/constitution.toml"
SMALL = {
    "tokenizer": {"documents": 200, "vocab_size": 512},
    "prepare": {"documents": 300, "validation": 40},
    "pretrain": {"model": "preset:laptop-0.3m", "steps": 6, "batch_size": 8, "eval_every": 0},
    "helpful": {"rows": 200, "held_rows": 20, "steps": 4, "batch_size": 8, "eval_every": 0},
    "constitution": {"prompts": 8, "helpful_prompts": 4, "measure": 4, "rounds": 2, "max_tokens": 6},
    "sl": {"steps": 2, "batch_size": 8, "eval_every": 0},
    "rank": {"prompts": 12, "held_out": 8, "max_tokens": 6},
    "feedback": {"prompts": 8, "held_out": 6, "max_tokens": 6},
    "reward": {"steps": 2, "batch_size": 4},
    "rl": {"prompts": 20, "updates": 1, "batch_size": 8, "minibatches": 2, "max_tokens": 6},
    **{name: {"prompts": 4, "max_tokens": 6} for name in ("before", "after_sl", "after_rl")},
}


def test_the_recipe_runs_from_text_to_the_measured_model(tmp_path):
    out = run_recipe(RECIPE, {"out": str(tmp_path / "cai"), **SMALL})
    stages = {s["name"]: s for s in json.loads((out / "summary.json").read_text())["stages"]}
    assert list(stages) == list(SMALL)
    assert stages["after_rl"]["metrics"]["harmful_n"] == 4
    assert len(stages["constitution"]["metrics"]["by_round"]) == 3
    assert "Conduct" in (out / "report.html").read_text()
