"""The reward report against pairs counted by hand, and features that are made once instead of at every step."""

from __future__ import annotations

import pytest
import torch

from tutelage.model.heads import logprob_features
from tutelage.model.hub import create_model
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad, train_tokenizer
from tutelage.train.reward_data import add_features, encode_ranking, parts
from tutelage.train.reward_report import Truth, pair_accuracy, prefers_longer, reward_report


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
    assert out["accuracy_by_prompt"] == pytest.approx(0.5)  # each row has a half
    assert out["over_length"] == pytest.approx(-0.5) and out["over_length_low"] <= -0.5 <= out["over_length_high"]


def test_the_length_rule_is_the_training_rows_own() -> None:
    rows = [{"prompt": "p", "responses": ["aaa", "b"], "ranking": [[1], [0]]}]
    assert not prefers_longer(rows)
    out = reward_report(rows, [[0.0, 1.0]], [None], longer=False)
    assert out["length_only_accuracy"] == 1.0 and out["over_length"] == 0.0
    assert reward_report(rows, [[0.0, 1.0]], [None])["length_only_accuracy"] == 0.0


def test_soft_labels_count_by_the_majority_and_calibrate_against_the_share() -> None:
    p = [[None, 0.75, 0.5], [0.25, None, None], [0.5, None, None]]
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[0], [2], [1]], "p_better": p}]
    score = [1.0986122886681098, 0.0, 5.0]  # sigmoid of the difference of the first two is 3/4
    out = reward_report(rows, [score], [None])
    assert out["pairs"] == 1 and out["accuracy"] == 1.0 and out["calibration_error"] == pytest.approx(0, abs=1e-9)
    assert pair_accuracy(rows, [[0.0, 1.0, 2.0]]) == 0.0 and pair_accuracy(rows, [[1.0, 1.0, 2.0]]) == 0.5


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
    pad = tokenizer.pad_token_id
    (_, alone), *_ = parts(rows, pad, 10**6)
    add_features(rows, model, pad)
    assert [row["features"].shape for row in rows] == [(2, 5), (3, 5), (2, 5)]
    ((here, part),) = parts(rows, pad, 10**6)
    direct = logprob_features(model, alone["input_ids"], alone["attention_mask"], alone["response_mask"])
    assert torch.allclose(part["features"], direct, atol=1e-4)
    assert torch.equal(part["features"], torch.stack([rows[p]["features"][k] for p, k in here]))
    assert all(torch.equal(alone[k], part[k]) for k in alone)
