"""Comparing models on any prompts with any judge: paired gains, and what a base model is given to continue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.core.errors import ConfigError
from tutelage.pipeline import compare, run_recipe
from tutelage.pipeline.compare import CompareConfig, answers, measure

JUDGE = '''
def score(prompts, completions, *, wanted, **columns):
    return [float(w in c) for w, c in zip(wanted, completions, strict=True)]

def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]

def rows():
    for i in range(6):
        yield {"prompt": f"say {i}", "wanted": str(i), "opening": "once", "completion": f"{i}!"}
'''
SAID = {"sft": ["0", "no", "no", "3", "no", "no"], "rlhf": ["0", "1", "no", "3", "4", "no"], "base": ["upon"] * 6}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareConfig:
    file = tmp_path / "judge.py"
    file.write_text(JUDGE)

    def ask(path, rows, base, temperature, config):  # type: ignore[no-untyped-def]
        n = config.samples if temperature else 1
        return [[SAID[path.name][int(row["wanted"])]] * n for row in rows]

    monkeypatch.setattr(compare, "_ask", ask)
    return CompareConfig(
        data=f"{file}:rows", split="all", samples=2, gold=f"{file}:score", also=[f"{file}:length"],
        models={name: name for name in ("base", "sft", "rlhf")},
    )  # fmt: skip


def test_gain_is_paired_by_prompt(config: CompareConfig) -> None:
    found = measure({name: Path(name) for name in SAID}, config)
    assert found["sft_gold_sampled"] == pytest.approx(2 / 6) and found["rlhf_gold_greedy"] == pytest.approx(4 / 6)
    assert found["rlhf_length_t0.3"] == pytest.approx(8 / 6)
    gains = [0, 1, 0, 0, 1, 0]  # by prompt, not the difference of two independent means
    mean = sum(gains) / 6
    half = 1.96 * (sum((g - mean) ** 2 for g in gains) / 5 / 6) ** 0.5
    assert found["rlhf_gain_sampled"] == pytest.approx(mean)
    assert found["rlhf_gain_sampled_low"] == pytest.approx(mean - half)
    assert found["rlhf_gain_sampled_high"] == pytest.approx(mean + half)
    assert not any(key.startswith("base") for key in found)


def test_answers_stand_beside_the_demonstration_and_base_continues_the_opening(config: CompareConfig) -> None:
    rows = answers({name: Path(name) for name in SAID}, config)
    assert rows[1] == {"prompt": "say 1", "gold_answer": "1!", "base": "once upon", "sft": "no", "rlhf": "1"}


def test_without_a_judge_the_answers_are_shown_and_nothing_is_measured(config: CompareConfig) -> None:
    plain = CompareConfig(data=config.data, split="all", models=config.models)
    assert measure({"sft": Path("sft")}, plain) == {} and len(answers({"sft": Path("sft")}, plain)) == 6


def test_a_wrong_table_is_named_before_any_stage_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[tokenizer]\n[compare]\ndata = "schoolroom:demo"\nmodels = {sft = "sfft"}\n')
    with pytest.raises(ConfigError, match="models.sft='sfft' is no stage and no model; stages: tokenizer"):
        run_recipe(recipe, {"out": str(tmp_path / "out")})
    recipe.write_text('[compare]\ndata = "schoolroom:demo"\nmodels = {}\nprompt = 3\n')
    with pytest.raises(ConfigError, match="did you mean 'prompts'"):
        run_recipe(recipe, {"out": str(tmp_path / "out")})


def test_here_is_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.py").write_text('def rows():\n    yield from ({"text": f"the {i} words"} for i in range(50))\n')
    recipe = tmp_path / "r.toml"
    recipe.write_text('[tokenizer]\ndata = "${HERE}/text.py:rows"\nvocab_size = 300\n')
    monkeypatch.setenv("HERE", "elsewhere")
    out = run_recipe(recipe, {"out": str(tmp_path / "out")})
    manifest = json.loads((out / "tokenizer" / "manifest.json").read_text())
    assert manifest["parents"][0]["name"] == "text.py"  # a change of the file re-runs the stage
