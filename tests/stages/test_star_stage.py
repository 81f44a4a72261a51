"""The stage end to end, very small, and killed between and within its loops."""

import hashlib
import json

import pytest

from tests.icl.reasoning_engines import served
from tests.icl.test_star import Scripted, say
from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.star import arithmetic
from tutelage.model.hub import create_model, save_model
from tutelage.pipeline.stages import launch
from tutelage.studies.parts import word_tokenizer

TIMES = {"asking_seconds", "training_seconds"}
CHECK = """
def even(prompts, completions, **columns):
    return [float(sum(map(ord, prompt + text)) % 2 == 0) for prompt, text in zip(prompts, completions)]
"""


@pytest.fixture(scope="module")
def adder(tmp_path_factory):
    """A small model with the words of the scratchpads, that knows nothing."""
    tokenizer = word_tokenizer(arithmetic.WORDS)
    folder = tmp_path_factory.mktemp("adder") / "model"
    return save_model(create_model("laptop-0.3m", tokenizer, 128, 0), tokenizer, folder)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_loop_with_the_rationales_of_a_server(adder, tmp_path):
    with served(Scripted(say)) as engine:
        out, _ = launch("star", {
            "model": str(adder), "data": "arithmetic:2", "generator": engine.base_url, "loops": 1, "per_loop": 200,
            "pool": 400, "held_rows": 20, "start_steps": 4, "batch_size": 8, "ask_batch": 64, "precision": "fp32",
            "out": str(tmp_path / "star"),
        })  # fmt: skip
    rows = read(out / "loop-01/rationales.jsonl")
    assert len(rows) == 200
    for row in rows:
        total = sum(int(side.replace(" ", "")) for side in row["question"].split(" + "))
        assert row["samples"][0]["right"] is (total < 50) and bool(row["hinted"]) is (total >= 50)
        assert (row["hinted"] or {}).get("right", False) is (50 <= total < 100)
    summary = json.loads((out / "summary.json").read_text())
    (told,) = [row for row in read(out / "metrics.jsonl") if row["step"] == 1]
    assert told["rows"] == sum(any(s and s["right"] for s in (*r["samples"], r["hinted"])) for r in rows)
    assert told["steps"] == 4 and summary["best_loop"] == 1 and "test_accuracy" in summary
    assert (out / "model/model.safetensors").exists() and told["solved/2"] == told["solved"]


def test_a_model_that_solves_nothing_is_told_so(adder, tmp_path):
    values = {"model": str(adder), "data": "arithmetic:2", "per_loop": 8, "held_rows": 4, "out": str(tmp_path / "star")}
    with pytest.raises(DataError, match="none of 8 questions was solved"):
        launch("star", values)
    with pytest.raises(ConfigError, match="made and checked here"):
        launch("star", {**values, "test": "x.jsonl", "out": str(tmp_path / "other")})


def checked(chain, folder):
    """Words of a run whose check any model passes now and then."""
    (folder / "check.py").write_text(CHECK)
    rows = [{"prompt": f"What is {i}?", "answer": str(i), "group": "even" if i % 2 else "odd"} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "star", f"model={chain}/pretrain", f"data={folder}/rows.jsonl", f"check={folder}/check.py:even", "loops=3",
        "patience=0", "max_tokens=8", "ask_batch=8", "start_steps=30", "batch_size=4", "save_every=2", "precision=fp32",
        "max_length=48", "held_rows=12", "per_loop=64",
    ]  # fmt: skip


def made(path):
    loops = sorted(path.glob("loop-0[1-9]"))
    return {
        "models": [hashlib.sha256((at / "model/model.safetensors").read_bytes()).hexdigest() for at in (*loops, path)],
        "rationales": [(at / "rationales.jsonl").read_bytes() for at in loops],
        "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in read(path / "metrics.jsonl")],
        "summary": json.loads((path / "summary.json").read_text()),
    }


def test_killed_between_and_within_loops_and_no_bit_is_another(command, chain, tmp_path):
    line = checked(chain, tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one = command(*line, f"out={whole}")
    assert one.wait() == 0, one.text()
    places = (
        lambda: (killed / "loop-01/rationales.jsonl").exists(),
        lambda: list((killed / "loop-01/checkpoints").glob("step-*")),
        lambda: (killed / "loop-02").is_dir(),
        lambda: list((killed / "loop-03/checkpoints").glob("step-*")),
    )
    for place in places:
        process = command(*line, f"out={killed}")
        process.until(lambda: bool(place()))  # noqa: B023
        assert process.kill() == -9
        assert not (killed / "model").exists()
    last = command(*line, f"out={killed}")
    assert last.wait() == 0, last.text()
    assert "goes on after step" in last.text()
    assert made(killed) == made(whole)
    rows = read(whole / "loop-01/rationales.jsonl")
    assert {row["group"] for row in rows} == {"even", "odd"}
    assert {row["samples"][0]["right"] for row in rows} == {True, False}
    for row in rows:  # the user's check decides
        (said,) = row["samples"]
        assert said["right"] is (sum(map(ord, row["question"] + said["text"])) % 2 == 0)


@pytest.mark.parametrize("method", ["rft", "self_consistency"])
def test_the_other_methods(method, tmp_path, chain):
    rows = [{"question": f"How many are {i} and 1?", "answer": i + 1} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def some(prompt, number):
        asked = int(prompt.rsplit(" and 1?", 1)[0].rsplit(" ", 1)[1])
        return f" Way {number % 2}. The answer is {asked + 1 + (asked % 3 == 0) + (number == 3)}."

    with served(Scripted(some)) as engine:
        out, _ = launch("star", {
            "model": f"{chain}/pretrain", "data": str(tmp_path / "rows.jsonl"), "method": method, "samples": 4,
            "generator": engine.base_url, "loops": 1, "start_steps": 2, "batch_size": 4, "max_tokens": 12,
            "precision": "fp32", "max_length": 64, "held_rows": 5, "out": str(tmp_path / "star"),
        })  # fmt: skip
    told = read(out / "metrics.jsonl")[-1]
    found = read(out / "loop-01/rationales.jsonl")
    wrong = sum(int(row["answer"]) % 3 == 1 for row in found)
    if method == "rft":  # two different ways to each that is right
        assert told["solved"] == pytest.approx(1 - wrong / len(found))
        assert told["taught"] == 2 * (len(found) - wrong)
    else:  # three of four agree on an answer, which is wrong where that is how they were made
        assert told["used"] == 1 and told["label_right"] == pytest.approx(1 - wrong / len(found))
