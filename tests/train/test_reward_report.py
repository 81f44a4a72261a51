"""The reward report against pairs counted by hand, and features that are made once instead of at every step."""

from __future__ import annotations

import pytest
import torch

from tutelage.model.heads import logprob_features
from tutelage.model.hub import create_model
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad, train_tokenizer
from tutelage.train.reward_data import add_features, collate_rankings, encode_ranking
from tutelage.train.reward_report import Truth, reward_report


def test_pairs_counted_by_hand() -> None:
    rows = [
        {"prompt": "p", "responses": ["aaa", "b", "cc"], "ranking": [[0], [1, 2]]},  # pairs 0>1, 0>2
        {"prompt": "q", "responses": ["a", "bb"], "ranking": [[1], [0]]},  # pair 1>0
    ]
    scores = [[1.0, 2.0, 0.0], [0.5, 0.5]]  # wrong, right, equal
    truths = [Truth([0.9, 0.2, 0.2], [True, False, False]), Truth([0.7, 0.1], [True, False])]
    out = reward_report(rows, scores, truths)
    assert out["pairs"] == 3 and out["accuracy"] == pytest.approx(1.5 / 3)
    assert out["length_only_accuracy"] == pytest.approx(3 / 3)
    assert out["right_over_wrong_pairs"] == 3 and out["right_over_wrong"] == pytest.approx(1.5 / 3)
    assert out["gold_accuracy"] == pytest.approx(1.5 / 3)
    assert out["accuracy_ceiling"] == pytest.approx(2 / 3)  # the second row's label is against the truth
    unknown = reward_report(rows, scores, [None, None])
    assert "gold_accuracy" not in unknown and unknown["accuracy"] == out["accuracy"]


def test_features_made_once_equal_those_of_a_batch() -> None:
    tokenizer = train_tokenizer(["one two three four"] * 9, 300)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    model = create_model("laptop-0.3m", tokenizer, 128).eval()
    answers = [["one", "two two three"], ["four", "three one two one", "two"], ["one two three", "four four"]]
    ranked = [
        {"prompt": "one " * (i + 1), "responses": a, "ranking": [[j] for j in range(len(a))]}
        for i, a in enumerate(answers)
    ]
    rows = [encode_ranking(row, tokenizer, 64) for row in ranked]
    plain = collate_rankings(rows, tokenizer.pad_token_id)
    add_features(rows, model, tokenizer.pad_token_id, batch=2)
    batch = collate_rankings(rows, tokenizer.pad_token_id)
    direct = logprob_features(model, plain["input_ids"], plain["attention_mask"], plain["response_mask"])
    real = plain["mask"].flatten()
    assert batch["features"].shape == direct.shape
    assert torch.allclose(batch["features"][real], direct[real], atol=1e-4)
    assert all(torch.equal(plain[k], batch[k]) for k in plain)
