"""STaR on the real GSM8K and CommonsenseQA: one loop of a small real model whose rationales a server gives."""

import json
import re

import pytest

from tests.icl.reasoning_engines import Scripted, served
from tutelage.icl.reasoning import read_problems
from tutelage.pipeline.stages import launch

pytestmark = pytest.mark.real
SETS = {"gsm8k": "reason/gsm8k", "commonsenseqa": "reason/zero_shot_cot/CommonsenseQA"}


def speaker(problems):
    """Knows the gold rationale of every other question, and the answer of the rest only where a hint tells it."""
    known = {p.text: p for i, p in enumerate(problems) if i % 2}

    def say(prompt, number):
        asked = prompt.rsplit("Q: ", 1)[1].removesuffix("\nA:")
        if asked in known:
            return f" {known[asked].rationale} The answer is {known[asked].shown_answer}."
        if found := re.search(r"\(([A-E])\) [^(]*\(CORRECT\)|\((-?[\d.]+)\)$", asked):
            return f" It is told. The answer is {f'({found[1]})' if found[1] else found[2]}."
        return " I cannot say."

    return say


@pytest.mark.parametrize("name", SETS)
def test_one_loop(name, real_data, tmp_path):
    data = real_data / SETS[name]
    with served(Scripted(speaker(read_problems(data)))) as engine:
        out, _ = launch("star", {
            "model": str(real_data / "weights/stories260K/hf"), "data": str(data), "generator": engine.base_url,
            "loops": 1, "per_loop": 200, "pool": 5000, "held_rows": 40, "start_steps": 20, "batch_size": 8,
            "max_tokens": 48, "max_length": 512, "precision": "fp32", "out": str(tmp_path / "star"),
        })  # fmt: skip
    rows = [json.loads(line) for line in (out / "loop-01/rationales.jsonl").read_text().splitlines()]
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert len(rows) == 200 and told["solved"] + told["rationalised"] == 1 and 0.35 < told["solved"] < 0.65
    assert all(row["samples"][0]["right"] or row["hinted"]["right"] for row in rows)
    assert told["rows"] + told["rows_too_long"] == 200 and told["rows"] > 50
    summary = json.loads((out / "summary.json").read_text())
    for when in (told, summary):
        assert 0 <= when["accuracy_low"] <= when["accuracy"] <= when["accuracy_high"] <= 1
    print(name, {k: v for k, v in summary.items() if k.startswith("accuracy")}, told["loss"])
