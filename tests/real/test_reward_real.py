"""Reward models on real preferences: every published shape is read, questions are kept apart, training learns."""

import json

import pytest

from tutelage.core.records import BadRows
from tutelage.core.rundir import read_manifest
from tutelage.model.heads import create_reward_model
from tutelage.model.hub import load_model, load_tokenizer
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.chat import as_messages
from tutelage.text.corpus import read_rows
from tutelage.text.rankings import as_ranking
from tutelage.train.reward_data import encode_ranking, score_rankings
from tutelage.train.reward_report import pair_accuracy
from tutelage.train.sources import rankings

pytestmark = pytest.mark.real

HH = "pref/hh_rlhf/split/dev.jsonl"
KWAY = "pref/alpaca_eval_gpt4judge/split/dev_kway.jsonl"
PAIRS = {
    HH: 1599,
    "pref/alpaca_eval_gpt4judge/split/dev_pairs.jsonl": 5191,
    "pref/llamafactory_demo/dpo_en_demo.json": 300,
    "pref/llamafactory_demo/dpo_zh_demo.json": 300,
    "pref/medicalgpt_reward/dpo_zh_500.jsonl": 500,
}


def whole(value):
    """The text of one side as the file has it."""
    return value if isinstance(value, str) else value["value"]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_read_and_nothing_of_them_is_lost(real_data, name):
    count = 0
    for where, raw in read_rows(real_data / name):
        row = as_ranking(raw, where)
        assert row["ranking"] == [[0], [1]] and "p_better" not in row
        prompt = row["prompt"] if isinstance(row["prompt"], list) else as_messages({"prompt": row["prompt"]})
        for side, text in zip(("chosen", "rejected"), row["responses"]):
            assert whole(raw[side]).rstrip().endswith(text)
            if name == HH:  # the prompt, the answer and the words "Human:" and "Assistant:" are the whole text
                marks = {"user": "Human:", "assistant": "Assistant:"}
                told = [marks[m["role"]] + m["content"] for m in prompt] + [marks["assistant"] + text]
                assert "".join("".join(told).split()) == "".join(raw[side].split())
        if "conversations" in raw:
            assert [m["content"] for m in prompt] == [turn["value"] for turn in raw["conversations"]]
        count += 1
    assert count == PAIRS[name]


def test_k_way_rows_are_ordered_by_the_judges_win_rate(real_data):
    sizes = set()
    for where, raw in read_rows(real_data / KWAY):
        row = as_ranking(raw, where)
        rates = [c["winrate_vs_base"] for c in raw["candidates"]]
        levels = [{rates[i] for i in group} for group in row["ranking"]]
        assert all(len(level) == 1 for level in levels)
        flat = [level.pop() for level in levels]
        assert flat == sorted(set(rates), reverse=True) and row["responses"] == [c["output"] for c in raw["candidates"]]
        sizes.add(len(rates))
    assert sizes == {12, 13}


def test_rows_of_tools_are_named_and_skipped(real_data):
    bad = BadRows("skip")
    train, held = rankings(str(real_data / "pref/medicalgpt_reward/toolcall_dpo_zh_demo.jsonl"), bad=bad)
    assert len(train) + len(held) == 7 and bad.count == 4 and "role 'function_call'" in bad.first[0]


@pytest.mark.parametrize("name", [HH, KWAY])
def test_no_held_out_question_is_trained_on(real_data, name):
    train, held = rankings(str(real_data / name))
    asked = [{as_messages({"prompt": row["prompt"]})[0]["content"] for row in side} for side in (train, held)]
    assert not asked[0] & asked[1] and 0.05 < len(held) / (len(train) + len(held)) < 0.15


def test_a_reward_model_learns_real_pairs_and_reports_itself(real_data, tmp_path):
    base, data, count = str(real_data / "weights/stories260K/hf"), str(real_data / HH), 160
    path, _ = launch("reward", {
        "model": base, "data": data, "rows": count, "held_rows": count, "steps": 60, "batch_size": 16,
        "max_length": 160, "features": False, "out": str(tmp_path / "reward"), "optimizer": {"lr": 1e-3},
    })  # fmt: skip
    found = read_summary(path)
    assert found["train_prompts"] == count and 100 < found["held_prompts"] == found["pairs"] <= count
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert found["accuracy_by_prompt"] == pytest.approx(found["accuracy"])  # two responses a prompt: one pair each
    assert found["over_length"] == pytest.approx(found["accuracy"] - found["length_only_accuracy"])
    assert found["over_length_low"] < found["over_length"] < found["over_length_high"]
    assert found["length_rule"] == "shorter" and -1 <= found["length_correlation"] <= 1
    assert 0 <= found["calibration_error"] <= 1 and -1 <= found["kendall_tau"] <= 1
    assert found["prompts_cut"] > 0 and found["responses_cut"] >= 0

    tokenizer = load_tokenizer(path)
    rows = rankings(data)[0][: found["held_prompts"]]
    encoded = [encode_ranking(row, tokenizer, 160) for row in rows]
    fresh = create_reward_model(load_model(base, tokenizer)[0], tokenizer, seed=0).eval()
    before = pair_accuracy(rows, score_rankings(fresh, encoded, tokenizer.pad_token_id))
    assert before < 0.6 and found["train_accuracy"] > before + 0.1
    assert read_manifest(path)["status"] == "finished"
    losses = [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "kept"), [(HH, ("accuracy_by_prompt",)), (KWAY, ("kendall_tau",))])
def test_the_report_and_the_learning_curve_stand_on_real_data(real_data, tmp_path, name, kept):
    base, data = str(real_data / "weights/stories260K/hf"), str(real_data / name)
    path, _ = launch("reward_curve", {
        "models": [base], "data": data, "prompts": [8, 16], "held_rows": 40, "min_steps": 4, "passes": 1.0,
        "batch_size": 4, "max_length": 96, "out": str(tmp_path / "curve"),
    })  # fmt: skip
    found = read_summary(path)
    assert found["measure"] == "accuracy" and [cell["prompts"] for cell in found["cells"]] == [8, 16]
    assert 0.3 < found["stories260K/hf"] < 0.9 and "people_agreement" not in found
    again, _ = launch("evaluate", {"model": str(path / found["cells"][1]["run"]), "data": data, "rows": 30,
                                   "out": str(tmp_path / "again")})  # fmt: skip
    report = json.loads((again / "reward_report.json").read_text())
    assert report["people"] is None and all(key in report["summary"] for key in kept)
    assert report["length"]["longer_preferred"]["pairs"] + report["length"]["shorter_preferred"]["pairs"] > 20
    assert sum(row["pairs"] for row in report["reliability"]) == report["summary"]["pairs"]
