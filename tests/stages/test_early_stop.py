"""An RL run that stops when what its reward stands for falls, and what its curves say at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.core.errors import TutelageError
from tutelage.engine import load
from tutelage.pipeline.stages import launch, read_summary

RISE = 6
JUDGE = f"""
calls = 0

def falling(prompts, completions, **columns):
    global calls
    calls += 1
    return [float(calls if calls <= {RISE} else 2 * {RISE} - calls)] * len(completions)

def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]
"""
SMALL = {"prompts": 40, "batch_size": 8, "minibatches": 2, "max_tokens": 6, "precision": "fp32", "save_every": 0}


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    file = tmp_path / "judge.py"
    file.write_text(JUDGE, encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_stops_once_gold_falls_and_keeps_its_best(chain: Path, judge: Path, tmp_path: Path, kind: str) -> None:
    values = {**SMALL, "model": str(chain / "sft"), "reward": f"{judge}:length", "gold": f"{judge}:falling"}
    values |= {"updates": 40, "stop_on": "gold", "patience": 3, **({"group_size": 4} if kind == "grpo" else {})}
    path, _ = launch(kind, {**values, "out": str(tmp_path / kind)})
    found = read_summary(path)
    best = RISE + 2  # a mean over five is greatest where the peak is its middle
    assert found["stopped_early"] and found["kept_update"] == best
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == best + 3
    assert {"repetition", "refusal_rate", "sycophancy_rate", "distinct"} <= set(rows[0])
    assert found["gold_best"] > found["gold_last"] and found["gold_lost"] > 0
    assert found["gold_fit"]["law"] == "rl" and -10 < found["gold_fit"]["r2"] <= 1
    assert not (path / "best").exists()
    assert load(path).generate(["sam"])[0].completions


def test_what_an_early_stop_needs(chain: Path, judge: Path, tmp_path: Path) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "where is sam?"}\n', encoding="utf-8")
    values = {**SMALL, "model": str(chain / "sft"), "reward": f"{judge}:length", "updates": 2, "data": str(rows)}
    for more, words in (
        ({"stop_on": "gold"}, "there is no gold score"),
        ({"stop_on": "held_out"}, "held_out_rewards"),
        ({"held_out_rewards": [str(chain / "reward")]}, "at least two"),
    ):
        with pytest.raises(TutelageError, match=words):
            launch("ppo", {**values, **more, "out": str(tmp_path / "run")})
