"""Reasoning on the real sets: every gold answer, and every method with a real model, here and behind HTTP."""

from __future__ import annotations

import json

import pytest

from tests.icl.reasoning_engines import served
from tutelage.core.records import BadRows
from tutelage.engine import load
from tutelage.icl.reasoning import METHODS, ReasonSettings, read_problems, reason
from tutelage.text.answers import extract_answer

pytestmark = pytest.mark.real
SETS = {
    "gsm8k": (7473, {"number"}),
    "zero_shot_cot/MultiArith": (600, {"number"}),
    "zero_shot_cot/AddSub": (395, {"number"}),
    "zero_shot_cot/SingleEq": (508, {"number"}),
    "zero_shot_cot/SVAMP": (1000, {"number"}),
    "zero_shot_cot/AQuA": (254, {"choice"}),
    "zero_shot_cot/CommonsenseQA": (9741, {"choice"}),
    "zero_shot_cot/Bigbench_Date": (369, {"choice"}),
    "zero_shot_cot/Bigbench_object_tracking": (750, {"choice"}),
    "zero_shot_cot/StrategyQA": (2290, {"yes_no"}),
    "zero_shot_cot/coin_flip": (500, {"yes_no"}),
    "zero_shot_cot/last_letters": (500, {"text"}),
    "bbh/bbh/word_sorting.json": (250, {"text"}),
    "bbh/bbh/navigate.json": (250, {"yes_no"}),
    "bbh/bbh/penguins_in_a_table.json": (146, {"choice"}),
}


@pytest.mark.parametrize("name", SETS)
def test_every_gold_answer_is_read_and_right(real_data, name):
    count, kinds = SETS[name]
    problems = read_problems(real_data / "reason" / name)
    assert len(problems) == count and {p.kind for p in problems} == kinds
    for problem in problems:
        said = problem.read(f"{problem.rationale} The answer is {problem.shown_answer}.")
        assert problem.grade(said), (problem, said)


def test_every_gsm8k_solution_as_it_stands(real_data):
    """All solutions of the files here, GSM8K's own text with <<notes>> and "####"."""
    solutions = [
        json.loads(line)["answer"]
        for path in sorted((real_data / "reason" / "gsm8k").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    problems = read_problems(real_data / "reason" / "gsm8k")
    assert len(solutions) == len(problems) >= 7473
    wrong = [s for s, p in zip(solutions, problems) if not p.grade(extract_answer(s, "number"))]
    assert not wrong


def test_a_broken_row_of_a_real_set_is_named_and_can_be_left_out(real_data):
    bad = BadRows("skip")
    assert len(read_problems(real_data / "reason" / "bbh" / "bbh" / "snarks.json", bad=bad)) == 177
    assert bad.count == 1 and "example 89: 1 options, expected 2 to 26" in bad.first[0]


@pytest.fixture(scope="module")
def stories(real_data):
    return load(real_data / "weights" / "stories260K" / "hf")


@pytest.mark.parametrize(
    "name", ["gsm8k", "zero_shot_cot/MultiArith", "zero_shot_cot/last_letters", "zero_shot_cot/coin_flip"]
)
def test_every_method_on_real_problems_here_and_behind_http(real_data, stories, name):
    problems = read_problems(real_data / "reason" / name)
    short = sorted(problems, key=lambda p: len(p.question))[:4]  # the model's context is 512 tokens
    settings = ReasonSettings(max_tokens=24, answer_tokens=6, paths=4, shots=1, clusters=2, max_hops=2)
    with served(stories) as remote:
        for method in METHODS:
            here = reason(method, stories, short, settings, seed=1)
            there = reason(method, remote, short, settings, seed=1)
            assert not any(r.error for r in here.results), (method, here.notes)
            assert not any(r.error for r in there.results), (method, there.notes)
            assert [r.texts for r in here.results] == [r.texts for r in there.results], method
            assert all(any(r.texts) for r in here.results), method
            assert here.generated_tokens > 0 and here.summary()["problems"] == 4
