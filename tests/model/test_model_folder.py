"""Presets, saving and loading, reward and value heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.errors import ConfigError, DataError, RunError
from tutelage.model.adapters import LoraSettings
from tutelage.model.heads import RewardModel, ValueModel, create_reward_model, logprob_features
from tutelage.model.hub import create_model, load_model, parameter_count, save_model
from tutelage.model.presets import PRESETS, build_config
from tutelage.model.tuning import add_adapter


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *[f"w{i}" for i in range(93)]])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def test_presets_and_sizes() -> None:
    assert all(build_config(name, 768, 128) for name in PRESETS)
    with pytest.raises(ConfigError, match="laptop-1m"):
        build_config("laptop-1n", 768, 128)


def test_laptop_1m_has_about_a_million_parameters(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 0.8e6 < parameter_count(create_model("preset:laptop-1m", tokenizer, 128, vocab_size=768)) < 1.1e6


def test_saved_model_reloads_equal(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = create_model("laptop-0.3m", tokenizer, 64, seed=1)
    again = create_model("laptop-0.3m", tokenizer, 64, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    save_model(model, tokenizer, tmp_path / "run" / "model")
    save_model(model, tokenizer, tmp_path / "run" / "model")
    loaded, found = load_model(tmp_path / "run")
    ids = torch.randint(3, 96, (2, 9))
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    assert loaded.config.pad_token_id == found.pad_token_id == 0
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["model"]
    with pytest.raises(DataError, match="config.json"):
        load_model(tmp_path / "nothing")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    mask = (torch.arange(12) < torch.tensor([[12], [7], [4]])).long()
    return torch.randint(3, 96, (3, 12)) * mask, mask


def test_reward_reads_the_last_real_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    reward = create_reward_model(create_model("laptop-0.3m", tokenizer, 64), tokenizer, seed=4).eval()
    ids, mask = batch()
    scores = reward(ids, mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        alone = reward(ids[i : i + 1, :n], mask[i : i + 1, :n])
        assert torch.allclose(alone, scores[i : i + 1], atol=1e-5)
    theirs = reward.model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    assert torch.allclose(theirs, scores, atol=1e-5)
    reward.reward_shift = 0.5
    assert torch.allclose(reward(ids, mask), scores - 0.5)
    reward.save(tmp_path / "rm" / "model", tokenizer)
    assert torch.allclose(RewardModel.load(tmp_path / "rm").eval()(ids, mask), scores - 0.5, atol=1e-6)


def test_features_and_their_head(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sft = create_model("laptop-0.3m", tokenizer, 64).eval()
    ids, mask = batch()
    response = mask * (torch.arange(12) >= 3)
    found = logprob_features(sft, ids, mask, response)
    logprobs = sft(ids[1:2, :7]).logits[0, :-1].log_softmax(-1)[torch.arange(6), ids[1, 1:7]][2:]
    expected = torch.cat([logprobs.sort().values[:3], logprobs.sum()[None] / 10, torch.tensor([0.4])])
    assert torch.allclose(found[1], expected, atol=1e-4)
    assert found[2, 1] == 0 and found.shape == (3, 5)
    reward = create_reward_model(sft, tokenizer, features=True).eval()
    with pytest.raises(DataError, match="features"):
        reward(ids, mask)
    plain = reward(ids, mask, found)
    torch.nn.init.normal_(reward.features.out.weight)
    assert not torch.allclose(reward(ids, mask, found), plain)
    reward.save(tmp_path / "rm")
    assert torch.allclose(RewardModel.load(tmp_path / "rm").eval()(ids, mask, found), reward(ids, mask, found))


def test_value_model_starts_as_the_reward_model(tokenizer: PreTrainedTokenizerFast) -> None:
    reward = create_reward_model(create_model("laptop-0.3m", tokenizer, 64), tokenizer).eval()
    reward.reward_shift = 0.25
    values = ValueModel.from_reward(reward).eval()
    ids, mask = batch()
    out = values(ids, mask)
    assert out.shape == (3, 12)
    assert torch.allclose(out[torch.arange(3), mask.sum(1) - 1], reward(ids, mask), atol=1e-6)


def test_lora_trains_only_the_adapter(tokenizer: PreTrainedTokenizerFast) -> None:
    model = add_adapter(create_model("laptop-0.3m", tokenizer, 64), "lora", LoraSettings(r=4, alpha=8))
    assert 0 < parameter_count(model, trainable=True) < parameter_count(model) / 5


def test_a_missing_run_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="runs/sft"):
        load_model("runs/sft")
    with pytest.raises(DataError, match="create_model"):
        load_model("laptop-1m")


def test_lora_is_saved_merged_and_generates(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = add_adapter(create_model("laptop-0.3m", tokenizer, 64), "lora", LoraSettings(r=4, alpha=8)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    save_model(model, tokenizer, tmp_path / "m")
    loaded, _ = load_model(tmp_path / "m")
    ids = torch.randint(3, 96, (2, 9))
    assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-4)
    assert hasattr(model, "merge_and_unload")


def test_a_failed_save_leaves_the_old_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = create_model("laptop-0.3m", tokenizer, 64)
    save_model(model, tokenizer, tmp_path / "m")
    before = {p.name: p.stat().st_size for p in (tmp_path / "m").iterdir()}

    class Broken:
        def save_pretrained(self, folder: str) -> None:
            raise OSError("disk full")

    with pytest.raises(RunError, match="m: cannot write .disk full.; make room"):
        save_model(model, Broken(), tmp_path / "m")
    assert {p.name: p.stat().st_size for p in (tmp_path / "m").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
