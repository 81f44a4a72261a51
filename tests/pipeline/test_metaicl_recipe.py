"""recipes/metaicl.toml at a scale of seconds: every stage runs in turn, and the report shows accuracy in context."""

import json
from pathlib import Path

from tutelage.pipeline import run_recipe

RECIPE = Path(__file__).parents[2] / "recipes/metaicl.toml"
ARM = {"steps": 2, "batch_size": 4, "world_tasks": 4, "target_tasks": 1, "limit": 2, "shots": 1, "measured": [1]}
SMALL = {
    "tokenizer": {"documents": 100, "vocab_size": 400},
    "prepare": {"documents": 150, "validation": 20},
    "pretrain": {"steps": 3, "batch_size": 4, "block_size": 32, "eval_every": 0},
    "direct": ARM,
    "channel": ARM,
    "selfsupervised": {**ARM, "documents": 40},
}


def test_the_recipe_runs_from_text_to_the_measured_models(tmp_path):
    out = run_recipe(RECIPE, {"out": str(tmp_path / "m"), **SMALL})
    summary = json.loads((out / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == list(SMALL)
    for arm in ("direct", "channel", "selfsupervised"):
        metrics = next(s["metrics"] for s in summary["stages"] if s["name"] == arm)
        assert 0 <= metrics["accuracy_before"] <= 1 and len(metrics["groups"]) == 4
    page = (out / "report.html").read_text()
    assert "direct: accuracy in context, before and after" in page and "In-context learning" in page
