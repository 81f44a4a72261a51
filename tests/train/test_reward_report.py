"""The reward report against pairs counted by hand, and features that are made once instead of at every step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tutelage.model.heads import logprob_features
from tutelage.model.hub import create_model
from tutelage.text.chat import ensure_chat
from tutelage.text.rankings import join_annotators
from tutelage.text.tokenizer import ensure_pad, train_tokenizer
from tutelage.train.reward_data import add_features, encode_ranking, parts
from tutelage.train.reward_details import full_report
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


def long_and_short(n: int = 60) -> tuple[list[dict], list[list[float]]]:
    """Rows in which the longer answer is the better one in two of three, and a model that only likes length."""
    rows, scores = [], []
    for i in range(n):
        texts = [f"a{i}", "b" * (10 + i)]
        rows.append({"prompt": f"p{i}", "responses": texts, "ranking": [[1], [0]] if i % 3 else [[0], [1]]})
        scores.append([float(len(t)) / 10 for t in texts])
    return rows, scores


def test_a_model_that_only_likes_length_is_seen_through() -> None:
    rows, scores = long_and_short()
    report = full_report(rows, scores, [None] * len(rows))
    length = report["length"]
    assert report["summary"]["accuracy"] == pytest.approx(40 / 60) and report["people"] is None
    assert length["longer_preferred"] == {"value": 1.0, "low": 1.0, "high": 1.0, "pairs": 40}
    assert length["shorter_preferred"]["value"] == 0.0 and length["balanced"]["value"] == 0.5
    assert length["correlation_within"] == pytest.approx(1) and length["slope"] == pytest.approx(10)
    assert length["length_removed"]["value"] == pytest.approx(0.5, abs=0.26)  # nothing but rounding is left
    assert sum(row["pairs"] for row in length["curve"]) == 60
    assert [row["longer_by"] for row in length["curve"]] == sorted(row["longer_by"] for row in length["curve"])


def test_taking_length_out_leaves_what_else_the_model_knows() -> None:
    rows, scores = long_and_short()
    for row, score in zip(rows, scores):
        score[row["ranking"][0][0]] += 2.0  # the answer that people prefer; length makes 0.7 to 6.7
    length = full_report(rows, scores, [None] * len(rows))["length"]
    assert length["shorter_preferred"]["value"] < 0.5 < length["balanced"]["value"] < 1
    assert length["length_removed"]["value"] > length["balanced"]["value"]


def test_reliability_of_a_model_whose_margins_are_the_log_odds_of_the_labels() -> None:
    rng = np.random.default_rng(0)
    rows, scores = [], []
    for i in range(3000):
        margin = rng.normal(0, 2)
        first = rng.random() < 1 / (1 + np.exp(-margin))
        rows.append({"prompt": f"p{i}", "responses": ["a", "b"], "ranking": [[0], [1]] if first else [[1], [0]]})
        scores.append([margin, 0.0])
    report = full_report(rows, scores, [None] * len(rows))
    curve = report["reliability"]
    assert len(curve) == 10 and sum(row["pairs"] for row in curve) == 3000
    assert all(abs(row["pairs"] - 300) < 5 for row in curve)
    assert sum(row["low"] <= row["confidence"] <= row["high"] for row in curve) >= 8
    assert report["calibration_error_equal_bins"] < 0.03 and report["summary"]["calibration_error"] < 0.03
    assert [row["margin"] for row in curve] == sorted(row["margin"] for row in curve)
    sure = full_report(rows, [[5 * a, b] for a, b in scores], [None] * len(rows))
    assert sure["calibration_error_equal_bins"] > 0.1  # the same order, five times as sure
    assert sure["summary"]["accuracy"] == report["summary"]["accuracy"]


def test_the_model_stands_beside_the_people_as_one_more_person() -> None:
    orders = {"ann": [[0], [1], [2]], "bob": [[0], [1], [2]], "cal": [[1], [0], [2]]}
    texts = ["x", "y", "z"]
    people = [{"prompt": "p", "responses": texts, "ranking": o, "annotator": who} for who, o in orders.items()]
    # dan alone ranked another prompt, and his answers stand in another order than in the joined row's
    people += [{"prompt": "q", "responses": ["v", "u"], "ranking": [[0], [1]], "annotator": "dan"}]
    people += [{"prompt": "not measured", "responses": texts, "ranking": [[0], [1], [2]], "annotator": "eve"}]
    rows = join_annotators(people[:3]) + [people[3]]
    scores = [[3.0, 1.0, 2.0], [0.0, 1.0]]
    found = full_report(rows, scores, [None, None], people=people)["people"]
    assert found["between"]["annotators"] == 4 and found["between"]["agreement"] == pytest.approx(7 / 9)
    assert found["model_overlap"]["agreement"] == pytest.approx(5 / 9) and found["model_overlap"]["items"] == 1
    assert found["model"]["agreement"] == pytest.approx(5 / 10)  # dan has v above u, the model does not
    lines = {line["annotator"]: line for line in found["per_annotator"]}
    assert set(lines) == {"ann", "bob", "cal", "dan"} and lines["dan"]["agreement"] is None
    assert lines["dan"]["model_agreement"] == 0 and lines["cal"]["model_agreement"] == pytest.approx(1 / 3)
    summary = full_report(rows, scores, [None, None], people=people)["summary"]
    assert summary["people_agreement"] == pytest.approx(7 / 9) and summary["annotators"] == 4
    assert summary["model_agreement"] == pytest.approx(5 / 9)
    truths = [Truth([3.0, 2.0, 1.0], [True, False, False]), None]
    known = full_report(rows, scores, truths, people=people)["people"]["truth_overlap"]
    assert known["agreement"] == pytest.approx((3 + 3 + 2) / 9)


def test_a_report_of_labels_that_order_nothing_is_empty_and_not_broken() -> None:
    rows = [{"prompt": "p", "responses": ["a", "b"], "ranking": [[0, 1]]}]
    report = full_report(rows, [[1.0, 2.0]], [None])
    assert report["reliability"] == [] and report["length"]["balanced"]["value"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report
