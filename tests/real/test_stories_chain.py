"""The three steps on a real model (stories260K) and real stories, thin: SFT, ranking by a rule, reward, PPO."""

import json
from pathlib import Path

import pytest

from tutelage.pipeline.stages import launch, read_summary

pytestmark = pytest.mark.real

JUDGE = '''
def score(prompts, completions, **columns):
    """A story that talks and ends: dialogue, a last full stop, no endless repetition."""
    return [0.5 * ('"' in c) + 0.3 * c.strip().endswith((".", '"', "!"))
            + 0.2 * len(set(c.split())) / max(1, len(c.split())) for c in completions]
'''


def test_stories260k_goes_through_all_three_steps(real_data, tmp_path):
    text = (real_data / "text/tinystories_tiny/tinystories.txt").read_text(encoding="utf-8")
    stories = [s.strip() for s in text.split("\n\n") if len(s.split()) > 20]
    rows = []
    for story in stories:
        words = story.split()
        rows.append({"prompt": "Tell a story: " + " ".join(words[:6]), "completion": " ".join(words[6:36])})
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": r["prompt"]}) + "\n" for r in rows))
    (tmp_path / "judge.py").write_text(JUDGE)
    judge, prompts = f"{tmp_path}/judge.py:score", str(tmp_path / "prompts.jsonl")

    def go(kind, **values):
        return str(launch(kind, {**values, "out": str(tmp_path / kind)})[0])

    sft = go("sft", model=str(real_data / "weights/stories260K/hf"), data=str(tmp_path / "sft.jsonl"), steps=40,
             batch_size=16, optimizer={"name": "adamw", "lr": 1e-3}, eval_every=20)
    numbers = read_summary(Path(sft))
    assert numbers["val_loss"] < numbers["val_loss_before"]
    rank = go("rank", model=sft, data=prompts, judge=judge, prompts=60, held_out=20, max_tokens=40)
    reward = go("reward", model=sft, data=rank, steps=20, batch_size=8)
    assert read_summary(Path(reward))["pairs"] > 50
    ppo = go("ppo", model=sft, reward=reward, data=prompts, updates=3, batch_size=32, max_tokens=40)
    first = json.loads((Path(ppo) / "metrics.jsonl").read_text().splitlines()[0])
    assert first["first_ratio_deviation"] == 0.0 and first["kl"] == 0.0
