"""Every reasoning method end to end with an engine that a function plays."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.icl.reasoning_engines import Scripted
from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.reasoning import METHODS, Problem, ReasonSettings, reason
from tutelage.icl.reasoning.auto_cot import demonstration
from tutelage.icl.reasoning.prompts import TRIGGERS
from tutelage.icl.reasoning.settings import Path, ProblemResult

SUMS = [Problem(f"Ann has {a} eggs and gets {b}. How many?", str(a + b)) for a, b in [(2, 3), (40, 2), (7, 7)]]
OURS = Problem("One and one?", "2", rationale="One more than 1 is 2.")


def added(text):
    """The sum asked for last in a prompt."""
    a, b = re.findall(r"Ann has (\d+) eggs and gets (\d+)", text)[-1]
    return int(a) + int(b)


def solver(text, j):
    """Reasons, answers, follows up, takes apart: whatever the prompt ends with."""
    if text.endswith("Therefore, the answer (arabic numerals) is") or text.endswith("So the final answer is:"):
        return f" {added(text)}."
    if text.endswith("The answer (arabic numerals) is"):
        return f" {added(text)}."
    if text.endswith("Sub-questions:\n"):
        return "1. How many at first?\n2. How many more?\n\nQ: another"
    if text.endswith("needed here:"):
        n = added(text)
        return f" Yes.\nFollow up: What is it?\nIntermediate answer: {n}\nSo the final answer is: {n}."
    return f" They sum to {added(text)}. The answer is {added(text)}.\n\nQ: Who?\nA: The answer is 0."


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("chat", [False, True])
def test_a_perfect_solver_is_right_by_every_method(method, chat):
    settings = ReasonSettings(chat=chat, paths=3, clusters=2)
    engine = Scripted((lambda text, j: solver(text, j).split("\n\nQ: Who")[0]) if chat else solver)
    result = reason(method, engine, SUMS, settings, seed=1)
    assert result.accuracy == 1.0, result.results
    assert result.method == method and [r.problem for r in result.results] == SUMS
    assert all(r.prediction == r.problem.answer and r.texts and r.error is None for r in result.results)
    assert result.prompt_tokens > 0 and result.generated_tokens > 0 and result.seconds > 0
    assert result.generated_tokens == sum(p.tokens for r in result.results for p in r.paths) or method == "auto_cot"
    assert result.interval[0] == pytest.approx(0.4385, abs=1e-3) and result.interval[1] == 1.0
    assert json.loads(json.dumps(result.summary()))["accuracy"] == 1.0
    whole = {"least_to_most": 4, "zero_shot_cot": 2, "auto_cot": 3, "self_ask": 1}
    assert len(engine.calls) == whole.get(method, 1)  # stages, not problems
    kinds = {isinstance(prompt, list) for call in engine.calls for prompt in call}
    assert kinds == {chat}


def test_prompts_are_the_papers_shape():
    engine = Scripted(solver)
    settings = ReasonSettings(exemplars=[OURS])
    reason("few_shot_cot", engine, SUMS[:1], settings)
    reason("few_shot", engine, SUMS[:1], settings)
    reason("zero_plus_few_shot_cot", engine, SUMS[:1], settings)
    asked = SUMS[0].question
    shown = "Q: One and one?\nA: {}The answer is 2.\n\nQ: " + asked + "\nA:"
    assert engine.calls[0] == [shown.format("One more than 1 is 2. ")]
    assert engine.calls[1] == [shown.format("")]
    step = "Let's think step by step."
    assert engine.calls[2] == [shown.format(f"{step} One more than 1 is 2. ") + f" {step}"]
    assert {p.temperature for p in engine.params} == {0.0}
    engine = Scripted(solver)
    reason("zero_shot_cot", engine, SUMS[:1], ReasonSettings(trigger=TRIGGERS[1].text, max_tokens=128))
    reason("zero_shot", engine, SUMS[:1])
    first = f"Q: {asked}\nA: First,"
    thought = " They sum to 5. The answer is 5.\n"
    assert engine.calls == [
        [first], [f"{first}{thought}\nTherefore, the answer (arabic numerals) is"],
        [f"Q: {asked}\nA: The answer (arabic numerals) is"],
    ]  # fmt: skip
    assert [p.max_tokens for p in engine.params] == [128, 32, 32]


def test_chat_prompts_take_turns():
    engine = Scripted(lambda text, j: "It is 5. The answer is 5.")
    reason("few_shot_cot", engine, SUMS[:1], ReasonSettings(exemplars=[OURS], chat=True))
    reason("zero_shot_cot", engine, SUMS[:1], ReasonSettings(chat=True))
    one, two, three = (call[0] for call in engine.calls)
    assert [m["role"] for m in one] == ["user", "assistant", "user"]
    assert one[1]["content"] == "One more than 1 is 2. The answer is 2."
    assert two[-1]["content"] == f"{SUMS[0].question}\nLet's think step by step."
    assert three[1:] == [
        {"role": "assistant", "content": "It is 5. The answer is 5."},
        {"role": "user", "content": "Therefore, the answer (arabic numerals) is"},
    ]
    assert {p.stop for p in engine.params} == {()}


def test_answer_triggers_of_every_kind():
    choice = Problem("Which?", "B", ("one", "two", "six"), "choice")
    others = [choice, Problem("Is it?", "no", (), "yes_no"), Problem("Which word?", "as", (), "text")]
    said = {"C, the answer is": " (B).", "(Yes or No) is": " No.", "Therefore, the answer is": " as."}

    def say(text, j):
        return next((s for end, s in said.items() if text.endswith(end)), " Hm. B or no: as you like.")

    engine = Scripted(say)
    assert reason("zero_shot_cot", engine, others).accuracy == 1.0
    assert engine.calls[1][0].endswith("\nTherefore, among A through C, the answer is")
    assert "Answer Choices: (A) one (B) two (C) six" in engine.calls[0][0]


def flaky(text, j):
    """Right in paths 0, 1 and 2 of five, then wrong, then without an answer."""
    return f"The answer is {added(text)}." if j < 3 else "The answer is 1." if j == 3 else "well"


def test_self_consistency_votes_and_its_curve():
    engine = Scripted(flaky)
    result = reason("self_consistency", engine, SUMS, ReasonSettings(paths=5), seed=7)
    assert len(engine.calls) == 1 and {(p.n, p.temperature, p.seed) for p in engine.params} == {(5, 0.7, 7)}
    assert result.accuracy == 1.0 and {r.agreement for r in result.results} == {0.6}
    assert [p.paths for p in result.curve] == [1, 2, 3, 4, 5]
    assert result.curve[0].accuracy == pytest.approx(3 / 5) and result.curve[-1].accuracy == 1.0
    # two of five: RR 3, R? 6 of 10 (with the wrong one a tie, 3 of them), none right otherwise
    assert result.curve[1].accuracy == pytest.approx((3 + 3 + 3 * 0.5) / 10)
    assert result.calibration_error == pytest.approx(0.4)
    apart = Scripted(flaky)
    reason("self_consistency", apart, SUMS, ReasonSettings(paths=5, paths_per_request=2))
    assert [p.n for p in apart.params] == [2, 2, 1] * 3 and [p.seed for p in apart.params] == [0, 1, 2] * 3
    assert len(apart.calls) == 1


def test_self_consistency_weighted():
    result = reason("self_consistency", Scripted(flaky), SUMS, ReasonSettings(paths=5, weighting="normalised"))
    assert result.accuracy == 1.0 and result.results[0].paths[0].logprob == pytest.approx(-0.4)
    quiet = Scripted(flaky, logprobs=False)
    plain = reason("self_consistency", quiet, SUMS, ReasonSettings(paths=5))
    assert plain.accuracy == 1.0 and plain.prompt_tokens is None and plain.generated_tokens is None
    with pytest.raises(DataError, match="server gave none"):
        reason("self_consistency", quiet, SUMS, ReasonSettings(paths=5, weighting="unnormalised"))


def test_self_consistency_of_zero_shot_chains():
    engine = Scripted(lambda text, j: f" {added(text)}." if text.endswith("is") else f" Path {j}.")
    result = reason("self_consistency", engine, SUMS, ReasonSettings(paths=4, shots=0))
    assert result.accuracy == 1.0 and [len(call) for call in engine.calls] == [3, 12]
    assert result.results[0].paths[3].stages == (" Path 3.", " 5.")


def test_errors_are_counted_and_said():
    engine = Scripted(lambda text, j: "REFUSED" if "40" in text.rsplit("Ann", 1)[-1] else solver(text, j))
    for method in sorted(set(METHODS) - {"auto_cot"}):
        result = reason(method, engine, SUMS, ReasonSettings(paths=2))
        assert [r.error for r in result.results] == [None, "refused", None], method
        assert result.accuracy == pytest.approx(2 / 3) and result.summary()["errors"] == 1
        assert "1 of 3 problems got no answer, the first: refused" in result.notes
    with pytest.raises(DataError, match="no problems"):
        reason("few_shot", engine, [])


def test_self_ask_with_a_tool():
    asked = []

    def tool(question):
        asked.append(question)
        if "bad" in question:
            raise ValueError("no net")
        return "Rome\nand more"

    def say(text, j):
        own = text.rsplit("Question:", 1)[-1]
        if text.endswith("needed here:"):
            return " Yes.\nFollow up: Where is it?\nIntermediate answer: made up"
        if own.count("Intermediate answer:") == 1:
            return "Follow up: bad one?\nIntermediate answer: made up"
        return "So the final answer is: Rome.\n\nQuestion: next"

    where = [Problem("Where is the Colosseum?", "Rome", (), "text"), Problem("Where is the Forum?", "Rome", (), "text")]
    engine = Scripted(say)
    result = reason("self_ask", engine, where, ReasonSettings(tool=tool))
    assert result.accuracy == 1.0 and asked == ["Where is it?"] * 2 + ["bad one?"] * 2
    assert [len(call) for call in engine.calls] == [2, 2, 2]  # in lock step
    assert "Intermediate answer: Rome and more\nFollow up: bad one?\nIntermediate answer: error: no net\n" in (
        result.results[0].texts[0]
    )
    assert "made up" not in result.results[0].texts[0] and "the tool failed on 'bad one?'" in result.notes[0]


def test_self_ask_ends_even_if_the_model_asks_for_ever():
    def say(text, j):
        return " 5." if text.endswith("So the final answer is:") else " Follow up: Why?\nIntermediate answer:"

    asked = []
    settings = ReasonSettings(tool=lambda q: asked.append(q) or "so", max_hops=2)
    result = reason("self_ask", Scripted(say), SUMS[:1], settings)
    assert result.accuracy == 1.0 and asked == ["Why?"] * 2


def test_least_to_most_keeps_what_was_solved():
    engine = Scripted(solver)
    result = reason("least_to_most", engine, SUMS[:1])
    last = engine.calls[-1][0].rsplit("Problem:", 1)[-1]
    said, whole = "They sum to 5. The answer is 5.", SUMS[0].question
    assert last == f" {whole}\nQ: How many at first?\nA: {said}\nQ: How many more?\nA: {said}\nQ: {whole}\nA:"
    assert result.results[0].paths[0].stages[0].startswith("1. How many at first?")
    plain = reason("least_to_most", Scripted(lambda text, j: " The answer is 5."), SUMS[:1])
    assert plain.accuracy == 1.0 and "1 of 1 problems were not taken apart; they were asked as a whole" in plain.notes


def test_auto_cot_takes_the_question_nearest_each_centre():
    eggs = [Problem(f"Ann has {a} eggs and gets 2. How many?", str(a + 2)) for a in range(3, 9)]
    birds = [Problem(f"Of birds Ann has {a} eggs and gets 1 and then flies home? " + "so " * n, str(a + 1))
             for a, n in [(1, 70), (2, 1), (3, 2)]]  # fmt: skip
    points = np.array([[float(i), 0.0] for i in range(6)] + [[100.0, 0.0], [101.0, 0.0], [104.0, 0.0]])
    engine = Scripted(solver)
    settings = ReasonSettings(clusters=2, embed=lambda texts: points, trigger="Let's think step by step.")
    result = reason("auto_cot", engine, [*eggs, *birds], settings, seed=192)
    # clusters 0..5 (centre 2.5) and 100, 101, 104 (centre 101.67); of the latter the nearest, 101, is short enough
    shown = {p.question for p in result.exemplars}
    assert shown == {eggs[2].question, birds[1].question} or shown == {eggs[3].question, birds[1].question}
    assert result.accuracy == 1.0
    demo = result.exemplars[0]
    assert f"A: Let's think step by step. {demo.rationale} The answer is {demo.answer}.\n\n" in engine.calls[-1][0]
    assert engine.calls[-1][0].endswith("A: Let's think step by step.")


def test_auto_cot_rules():
    def made(thought, answer="5", problem=SUMS[0]):
        return demonstration(ProblemResult(problem, answer, True, (Path("", answer, stages=(thought, " 5.")),)))

    assert made(" 2 + 3 = 5.").rationale == "2 + 3 = 5."
    assert made("It is 5.\n" * 5 + "So 5.") is None  # six lines
    assert made("2 + 3 = 5") is None and made("2 + 3 = 5.", None) is None
    assert made("First 5. Then nothing at all of that is in the words that follow here now.") is None
    assert made("Then nothing. And 5 apples in the basket of the old woman.").answer == "5"
    assert made("It is so.", "as", Problem("Which?", "as", (), "text")) is not None
    assert made("No option.", "Z", Problem("Which?", "A", ("a", "b"), "choice")) is None


def test_auto_cot_without_any_demonstration_is_zero_shot_and_says_so():
    engine = Scripted(lambda text, j: " no stop and no number")
    result = reason("auto_cot", engine, [*SUMS, SUMS[0]], ReasonSettings(clusters=8))
    assert result.exemplars == () and result.accuracy == 0.0
    assert "3 different questions give 3 clusters, 8 were asked for" in result.notes
    assert "3 of 3 clusters have no question whose reasoning passes the rules" in result.notes


def test_what_cannot_be_done_is_said():
    with pytest.raises(ConfigError, match="method='magic'; expected one of zero_shot"):
        reason("magic", Scripted(solver), SUMS)
    for wrong in ({"paths": 0}, {"weighting": "best"}, {"embed": "bert"}, {"temperature": -1.0}, {"tool": "google"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ReasonSettings(**wrong)
    bare = ReasonSettings(exemplars=[Problem("One and one?", "2")])
    with pytest.raises(DataError, match="1 of 1 exemplars have no rationale"):
        reason("few_shot_cot", Scripted(solver), SUMS, bare)
    assert reason("few_shot", Scripted(solver), SUMS, bare).accuracy == 1.0
    with pytest.raises(ConfigError, match="by=hidden needs a local model"):
        reason("auto_cot", Scripted(solver), SUMS, ReasonSettings(embed="hidden"))
    with pytest.raises(ConfigError, match="shape"):
        reason("auto_cot", Scripted(solver), SUMS, ReasonSettings(embed=lambda texts: np.zeros((1, 2))))
