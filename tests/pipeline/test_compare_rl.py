"""recipes/compare-rl.toml at smoke scale: every method runs from one SFT model, and the report compares them."""

import json
from pathlib import Path

import pytest

from tutelage.core.errors import ConfigError, DataError
from tutelage.pipeline import run_recipe
from tutelage.pipeline.recipe import plan
from tutelage.report.methods import at_distance, method_panels, method_table, points
from tutelage.report.read import StageRun, read_stages

RECIPE = Path(__file__).parents[2] / "recipes/compare-rl.toml"
NAMES = ["reward", "ppo", "grpo", "rloo", "dpo", "dpo_online", "bestofn"]


@pytest.fixture(scope="module")
def compared(chain, tmp_path_factory):
    sft, text = str(chain / "sft"), str(chain / "prepare")
    few = {"model": sft, "prompts": 32, "max_tokens": 6}
    rl = {**few, "ptx_data": text, "ptx_batch": 2, "updates": 2, "batch_size": 16, "precision": "fp32"}
    small = {
        "reward": {"model": sft, "data": str(chain / "rank"), "steps": 2, "batch_size": 4},
        **{name: {**rl, "group_size": 4} for name in ("grpo", "rloo", "dpo_online")},
        "ppo": rl,
        "dpo": {"model": sft, "data": str(chain / "rank"), "ptx_data": text, "ptx_batch": 2, "updates": 4,
                "batch_size": 8, "eval_every": 2, "eval_prompts": 8, "max_tokens": 6, "precision": "fp32"},
        "bestofn": {**few, "n": 4, "prompts": 12},
        "compare": {"prompts": 4, "models": {"sft": sft}},
    }  # fmt: skip
    return run_recipe(RECIPE, {"out": str(tmp_path_factory.mktemp("runs") / "compare"), **small})


def test_every_method_ran_on_one_axis(compared):
    summary = json.loads((compared / "summary.json").read_text())
    assert [s["name"] for s in summary["stages"]] == NAMES
    assert {"ppo_kl", "grpo_kl", "rloo_kl", "dpo_kl", "dpo_online_kl", "bestofn_kl", "bestofn_gold"} <= set(
        summary["results"]
    )
    for name in NAMES[1:]:
        rows = [json.loads(line) for line in (compared / name / "metrics.jsonl").read_text().splitlines()]
        assert {"kl", "gold", "proxy"} <= set(rows[-1]), name


def test_the_report_has_their_table_and_plot(compared):
    stages = read_stages(compared, NAMES)
    table = method_table(stages)
    assert [row[0] for row in table["rows"]] == NAMES[1:] and len(table["columns"]) == len(table["rows"][0])
    panels = method_panels(stages)
    assert [p.title for p in panels] == ["gold against distance from SFT", "reward against distance from SFT"]
    assert [line[0] for line in panels[0].lines] == NAMES[1:]
    page = (compared / "report.html").read_text()
    assert "Methods compared" in page and "gold at KL" in page and "DPO (dpo_online)" in page


def test_points_and_what_lies_between_them():
    rows = [{"step": i, "kl": float(i * i), "gold": 0.1 * i, "proxy": 1.0} for i in range(5)]
    more = [{"step": 9, "gold": 5.0}, {"step": 10, "kl": -0.1, "gold": 0.0}]
    stage = StageRun("a", Path("a"), "ppo", rows=[*rows, *more])
    found = points(stage, "gold")
    assert found[0] == (0.0, 0.0) and found[-1] == (4.0, 0.4) and len(found) == 6
    assert at_distance(found, 2.0) == pytest.approx(0.2) and at_distance(found, 2.5) == pytest.approx(0.25)
    assert at_distance(found, 4.5) is None and method_panels([stage]) == []


def test_a_list_of_rewards_may_name_earlier_stages_and_is_checked(tmp_path, chain):
    judges = Path(__file__).with_name("judges.py")
    head = f'[reward]\nmodel = "{chain}/sft"\ndata = "{chain}/rank"\n[more]\nstage = "reward"\n'
    head += f'model = "{chain}/sft"\ndata = "{chain}/rank"\n[grpo]\nmodel = "{chain}/sft"\n'
    recipe = tmp_path / "r.toml"
    recipe.write_text(head + f'reward = ["{judges}:fine", ["@reward", "@more"]]\n')
    out, steps, _ = plan(recipe, {"out": str(tmp_path / "o")})
    assert steps[-1].values["reward"] == [f"{judges}:fine", [str(out / "reward"), str(out / "more")]]
    recipe.write_text(head + 'reward = ["nowhere.py:fine", "@reward"]\n')
    with pytest.raises(DataError, match=r"\[grpo\] reward.0='nowhere.py': no such file"):
        plan(recipe, {"out": str(tmp_path / "o")})
    recipe.write_text(head + 'reward = ["@rewrad", "@more"]\n')
    with pytest.raises(ConfigError, match="did you mean '@reward'"):
        plan(recipe, {"out": str(tmp_path / "o")})
