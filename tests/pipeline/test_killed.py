"""kill -9 at random moments, the same command again each time: the final files are those of a run that never died."""

import hashlib
import json
import random
import sys
import time
from pathlib import Path

import pytest

from tutelage.pipeline.recipe import plan
from tutelage.pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "tokens_per_second", "episodes_per_second"}


def made(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    return {
        "model": hashlib.sha256((path / "model/model.safetensors").read_bytes()).hexdigest(),
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
    }


def words(kind, chain):
    if kind == "sft":
        return [f"model={chain}/pretrain", "rows=200", "held_rows=40", "steps=150", "batch_size=8", "save_every=4"]
    return [
        f"model={chain}/sft", f"reward={chain}/reward", f"ptx_data={chain}/prepare", "ptx_batch=2", "prompts=64",
        "updates=40", "batch_size=16", "minibatches=2", "max_tokens=8", "save_every=2",
    ]  # fmt: skip


def half_written(path):
    return list((path / "checkpoints").glob(".step-*")) if (path / "checkpoints").is_dir() else []


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_killed_three_times_and_no_bit_is_another(command, chain, tmp_path, kind):
    line, rng = [kind, *words(kind, chain), "precision=fp32"], random.Random(kind)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one = command(*line, f"out={whole}")
    one.begins(whole)
    began = time.time()
    assert one.wait() == 0, one.text()
    length = time.time() - began
    # before the first checkpoint perhaps, in the middle of writing one, and somewhere later
    for number, share in enumerate((0.15, 0.1, 0.3)):
        process = command(*line, f"out={killed}")
        process.begins(killed)
        time.sleep(rng.uniform(0.2, 1.0) * share * length)
        if number == 1:
            process.until(lambda: half_written(killed))
        elif number == 2:
            process.until(lambda: any((killed / "checkpoints").glob("step-*")))
        assert process.kill() == -9
        manifest = json.loads((killed / "manifest.json").read_text())
        assert manifest["status"] == "running" and not (killed / "model").exists()
    last = command(*line, f"out={killed}")
    assert last.wait() == 0, last.text()
    assert "goes on after step" in last.text()
    assert made(killed) == made(whole) and not half_written(killed)


def test_the_campaign_kills_every_kind_of_stage():
    _, steps, _ = plan(ROOT / "benchmarks/endurance.toml")
    assert set(STAGES) - {step.kind for step in steps} == {"mixture"}


@pytest.mark.slow
def test_the_whole_chain_killed_five_times(tmp_path):
    """The campaign of `make soak` at smoke scale."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import kill_campaign

    words = ["pretrain.save_every=4", "sft.save_every=2", "reward.save_every=2", "ppo.save_every=1"]
    found = kill_campaign.main(
        ["--kills", "5", "--recipe", str(ROOT / "recipes/smoke.toml"), "--out", str(tmp_path), *words]
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert found == 0 and result["equal"] and len(result["kills"]) == 5, result["differences"][:3]
