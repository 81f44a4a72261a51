"""The stage: sweeps, several seeds, resuming, generated answers, and what a wrong key is told."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tutelage.core.errors import ConfigError, RunError
from tutelage.icl.evaluate import Bench, Setting, evaluate, macro_f1, statistics
from tutelage.icl.examples import Example
from tutelage.icl.prompts import MINIMAL, Prompter
from tutelage.icl.scoring import calibrate, content_free, probabilities
from tutelage.pipeline.stages import run

TASK = """
test = "test.jsonl"
train = "train.jsonl"
label = "label"
labels = { 0 = "negative", 1 = "positive" }
[format]
input = "Review: {text}"
output = "\\nSentiment: {answer}"
separator = "\\n\\n"
channel_input = "Sentiment: {answer}\\nReview: "
"""


@pytest.fixture
def made(tmp_path, engine, tokenizer):
    """(task file, model folder)"""
    for name, count in (("train", 12), ("test", 6)):
        said = [("fine", "dull")[i % 2] for i in range(count)]
        rows = [{"text": f"a {word} {name} film number {i}", "label": 1 - i % 2} for i, word in enumerate(said)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "task.toml").write_text(TASK)
    engine.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "task.toml"), str(tmp_path / "model")


def rows(path):
    return [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]


def test_a_sweep_has_every_cell_on_every_seed(made, tmp_path):
    task, model = made
    sweep = dict(shots=[0, 2], score=["direct", "channel"], select="bm25", seeds=2)
    path = run("icl", task=task, model=model, out=str(tmp_path / "out"), **sweep)
    found = rows(path)
    assert len(found) == 8 and {r["seed"] for r in found} == {0, 1}
    summary = json.loads((path / "summary.json").read_text())
    assert len(summary["cells"]) == 4 and (path / "accuracy.png").stat().st_size > 5000
    for cell in summary["cells"]:
        assert 0 <= cell["low"] <= cell["accuracy"] <= cell["high"] <= 1 and cell["worst"] <= cell["accuracy"]
        assert cell["low"] < cell["high"]  # six test examples never make a certain number
    predictions = [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 8 * 6
    for row in found:
        mine = [p for p in predictions if p["seed"] == row["seed"] and p["setting"] == row["setting"]]
        assert np.mean([p["prediction"] == p["gold"] for p in mine]) == pytest.approx(row["accuracy"])


def test_what_is_done_is_not_done_again(made, tmp_path, monkeypatch):
    import tutelage.stages.icl as stage

    task, model = made
    words = dict(task=task, model=model, shots=2, seeds=3, out=str(tmp_path / "out"))
    plain = stage._pass

    def breaks(config, task, bench, cells, searched, seed):
        if seed == 1:
            with (tmp_path / "out" / "predictions.jsonl").open("a") as file:  # what a kill leaves
                file.write('{"task": "half a li')
            raise RuntimeError("killed")
        return plain(config, task, bench, cells, searched, seed)

    monkeypatch.setattr(stage, "_pass", breaks)
    with pytest.raises(RuntimeError):
        run("icl", **words)
    asked = []
    monkeypatch.setattr(stage, "_pass", lambda *a: asked.append(a[-1]) or plain(*a))
    path = run("icl", **words)
    assert asked == [1, 2] and [r["seed"] for r in rows(path)] == [0, 1, 2]
    whole = run("icl", **{**words, "out": str(tmp_path / "whole")})
    assert (path / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()
    for a, b in zip(rows(path), rows(whole), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"score": "chanel"}, "one of direct, channel"),
        ({"select": "bm24"}, "select='bm24'"),
        ({"order": "backwards"}, "order='backwards'"),
        ({"condition": "golden"}, "condition='golden'"),
        ({"calibrate": "contextual", "score": "channel"}, "score=channel has not"),
        ({"norm": "pmi", "score": "perplexity"}, "norm=pmi is for score=direct"),
        ({"norm": "byte", "score": "perplexity"}, "mean over tokens already"),
        ({"method": "votes"}, "method='votes'; one of score, zero_shot"),
        ({"condition": "ood_inputs"}, "corpus=FILE"),
        ({"score": "channel", "chat": True}, "no chat form"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(made, tmp_path, words, message):
    task, model = made
    with pytest.raises(ConfigError, match=message):
        run("icl", task=task, model=model, shots=2, out=str(tmp_path / "out"), **words)


def test_calibration_and_norms_of_a_cell_equal_a_plain_computation(engine, logprob):
    labels = ("negative", "positive")
    words = ("dull", "fine", "bad", "good")
    pool = [Example({"text": t}, t, labels, i % 2, labels[i % 2]) for i, t in enumerate(words)]
    queries = [Example({"text": t}, t, labels, 1, "positive") for t in ("very fine", "so so")]
    bench = Bench(engine, MINIMAL, MINIMAL, pool, queries)
    found = evaluate(bench, [Setting(2, "fixed", calibrate="contextual"), Setting(2, "fixed")], 0)
    prompter, prefix = Prompter(MINIMAL), Prompter(MINIMAL).prefix(pool[:2])

    def plain(e):
        pairs = [prompter.pair(e, label) for label in labels]
        return probabilities(np.array([logprob(prefix + a, b) for a, b in pairs]))

    bias = np.mean([plain(e) for e in content_free(queries[0])], axis=0)
    for q, query in enumerate(queries):
        np.testing.assert_allclose(found[1].probs[q], plain(query), atol=1e-4)
        np.testing.assert_allclose(found[0].probs[q], calibrate(plain(query), bias), atol=1e-4)


def test_statistics_by_hand():
    gold, said = np.random.default_rng(0).integers(0, 4, (2, 50))
    assert macro_f1(said, gold) == pytest.approx(f1_score(gold, said, average="macro"))
    assert macro_f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx((2 / 3 + 4 / 5) / 2)
    found = statistics([0, 1, 1], [[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], [0, 1, 0])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["ece"] == pytest.approx((abs(0.8 - 1) + abs(0.6 - 1) + abs(0.9 - 0)) / 3)


def test_open_answers_are_generated_and_graded(made, tmp_path):
    task, model = made
    text = 'test = "test.jsonl"\ntrain = "train.jsonl"\nlabel = "label"\nmetric = "number"\n'
    (tmp_path / "open.toml").write_text(text)
    path = run("icl", task=str(tmp_path / "open.toml"), model=model, shots=1, max_tokens=4, out=str(tmp_path / "o"))
    (row,) = rows(path)
    assert row["n"] == 6 and 0 <= row["accuracy"] <= 1
    with pytest.raises(ConfigError, match="its answers are generated"):
        run("icl", task=str(tmp_path / "open.toml"), model=model, shots=1, norm="byte", out=str(tmp_path / "o2"))


def test_files_that_a_description_names_are_part_of_the_run(made, tmp_path):
    task, model = made
    words = dict(task=task, model=model, shots=2)
    path = run("icl", **words, out=str(tmp_path / "out"))
    whole = (path / "manifest.json").read_text()
    assert run("icl", **words, out=str(tmp_path / "out")) == path  # nothing changed: finished
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("task.toml", "train.jsonl", "test.jsonl"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    # contents count, not the place
    run("icl", **{**words, "task": str(moved / "task.toml")}, out=str(tmp_path / "out"))
    assert (path / "manifest.json").read_text() == whole
    for name in ("test.jsonl", "train.jsonl", "task.toml"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(before.replace("film", "play") if "jsonl" in name else before + "\n# more\n")
        with pytest.raises(RunError, match="another configuration or other inputs"):
            run("icl", **words, out=str(tmp_path / "out"))
        (tmp_path / name).write_text(before)
    run("icl", **words, out=str(tmp_path / "out"))


def test_files_of_a_built_in_task_and_of_a_list_are_part_of_the_run(made, tmp_path, monkeypatch):
    task, model = made
    folder = tmp_path / "data" / "ordered_prompt" / "cr"
    folder.mkdir(parents=True)
    for name in ("train", "test"):
        said = [{"sentence": f"{name} {i}", "label": i % 2} for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in said))
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path / "data"))
    words = dict(task=["cr", task], model=model, shots=0, out=str(tmp_path / "out"))
    run("icl", **words)
    (folder / "test.jsonl").write_text((folder / "test.jsonl").read_text().replace("test 3", "test 4"))
    with pytest.raises(RunError, match="other inputs"):
        run("icl", **words)
