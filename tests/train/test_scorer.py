"""A reward model as a reward function, from its run directory, wherever the runs were moved to."""

import shutil

import pytest

from tutelage.core.errors import DataError
from tutelage.stages.reward import RewardConfig
from tutelage.train.reward_data import add_features, encode_ranking, score_rankings
from tutelage.train.rewards import call_reward
from tutelage.train.scorer import RewardScorer

PROMPTS = ["where is eva?", [{"role": "user", "content": "where is sam?"}]]
ANSWERS = ["eva is in the park.", "sam"]


def test_scores_are_those_of_the_stage(chain):
    scorer = RewardScorer.load(chain / "reward")
    found = call_reward(scorer, PROMPTS, ANSWERS, {"gold": [1, 2]})
    rows = [
        encode_ranking({"prompt": p, "responses": [a], "ranking": [[0]]}, scorer.tokenizer, scorer.max_length)
        for p, a in zip(PROMPTS, ANSWERS)
    ]
    add_features(rows, scorer.sft, scorer.tokenizer.pad_token_id)
    wanted = score_rankings(scorer.model, rows, scorer.tokenizer.pad_token_id)
    assert found == pytest.approx([w for (w,) in wanted]) and len(set(found)) == 2
    assert scorer.max_length == RewardConfig.model_fields["max_length"].default
    assert scorer([], []) == []


def test_runs_may_be_moved_together_and_the_sft_model_is_missed(chain, tmp_path):
    before = RewardScorer.load(chain / "reward")(PROMPTS, ANSWERS)
    shutil.copytree(chain / "reward", tmp_path / "reward")
    shutil.copytree(chain / "sft", tmp_path / "sft")
    config = tmp_path / "reward/config.toml"
    config.write_text(config.read_text().replace(str(chain), str(tmp_path / "elsewhere")))
    assert RewardScorer.load(tmp_path / "reward")(PROMPTS, ANSWERS) == pytest.approx(before)
    shutil.rmtree(tmp_path / "sft")
    with pytest.raises(DataError, match="put it back"):
        RewardScorer.load(tmp_path / "reward")
    with pytest.raises(DataError, match="give the run directory"):
        RewardScorer.load(chain / "reward/model")
