"""Instruction search end to end: scripted engines, a tiny random model, T5's gaps, and a real task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BertConfig, T5Config

from tests.icl.instruction_helpers import ScriptedEngine, make_tokenizer, review, tiny_engine, token_logprobs
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import LocalEngine, SamplingParams, load
from tutelage.icl.examples import Example
from tutelage.icl.instructions import (
    ApeSettings,
    MetaPrompts,
    Pair,
    ape,
    execution_judge,
    induce,
    induction_prompts,
    judge_all,
    likelihood_judge,
    load_prompts,
    metric,
    pairs_of,
    propose,
    read_pairs,
    read_prompts,
    resample,
)  # fmt: skip
from tutelage.icl.instructions.induction import METRICS, read_annotations
from tutelage.icl.instructions.ranked import score

WORDS = [("hot", "cold"), ("up", "down"), ("in", "out"), ("big", "small"), ("old", "new")]
ANTONYMS = [Pair(word, (other,)) for word, other in WORDS]
OPPOSITE = "write the opposite"


def antonym_engine() -> ScriptedEngine:
    """Proposes good and bad instructions; carries out those that speak of the opposite, and finds them likelier."""
    answers = {pair.input: pair.answers[0] for pair in ANTONYMS}

    def asked(prompt: str) -> str:
        return prompt.split("Input: ")[-1].split("\n")[0]

    def says(prompt: str) -> list[str]:
        if "they were given was to" in prompt:
            return [f" {OPPOSITE}.", f': "{OPPOSITE}."\nInput: x', " repeat it", "  \n", " count to ten"]
        if prompt.endswith("In other words:"):
            return [" give the opposite word", f" {OPPOSITE}.", " say nothing"]
        return [f" {answers[asked(prompt)]}\nInput:" if "opposite" in prompt.split("Input:")[0] else " what?"]

    def scores(context: str, continuation: str) -> list[float]:
        head = context.split("Input:")[0]
        return [-1.0 if "opposite word" in head else -2.0 if "opposite" in head else -5.0, -3.0]

    return ScriptedEngine(says, scores)


@pytest.mark.parametrize("by,calls", [("likelihood", (1, 1)), ("execution", (2, 0))])
def test_ape_finds_the_instruction_in_two_engine_calls(by, calls):
    engine = antonym_engine()
    settings = ApeSettings(subsamples=2, demonstrations=3, proposals=5, by=by, search="all", seed=1)
    found = ape(engine, ANTONYMS, ANTONYMS, settings)
    assert found[0].instruction == OPPOSITE + "."
    assert [r.times for r in found] == [4, 2, 2] and [r.evaluations for r in found] == [5, 5, 5]
    assert [r.score for r in found] == ([-2.5, -4.0, -4.0] if by == "likelihood" else [1.0, 0.0, 0.0])
    assert (len(engine.generated), len(engine.scored)) == calls
    first = engine.params[0]
    assert (first.n, first.temperature, first.top_p, first.max_tokens, first.seed) == (5, 0.9, 0.9, 50, 1)
    assert all(prompt.count("Input:") == 3 for prompt in engine.generated[0])


def test_ape_by_bandit_spends_less_and_one_call_a_round():
    engine = antonym_engine()
    settings = ApeSettings(subsamples=1, demonstrations=3, proposals=5, rounds=4, samples=2, share=0.4, confirm=0)
    found = ape(engine, ANTONYMS, ANTONYMS, settings)
    assert found[0].instruction == OPPOSITE + "."
    assert len(engine.generated) == 1 and len(engine.scored) == 4
    assert sum(r.evaluations for r in found) == sum(len(call) for call in engine.scored) < 15


def test_the_bandits_best_are_confirmed_on_every_pair():
    """All instructions are equally good and every value is chance."""
    names = [f"do {n}" for n in range(12)]
    luck = np.random.default_rng(0).normal(size=(12, 60))
    pairs = [Pair(f"x{i}", ("y",)) for i in range(60)]
    engine, asked = ScriptedEngine(lambda prompt: names), []

    def judge(pulls):
        asked.append(len(pulls))
        return [luck[names.index(name), pairs.index(pair)] for name, pair in pulls]

    settings = ApeSettings(subsamples=1, rounds=6, samples=2, confirm=4)
    found = ape(engine, pairs, pairs, settings, judge=judge)
    assert asked == [8] * 6 + [4 * 60]
    assert [r.evaluations for r in found[:4]] == [60] * 4 and all(r.evaluations <= 12 for r in found[4:])
    means = {name: row.mean() for name, row in zip(names, luck)}
    assert [r.score for r in found[:4]] == pytest.approx([means[r.instruction] for r in found[:4]], abs=1e-12)
    assert found[0].score == max(r.score for r in found[:4]) and len({r.instruction for r in found}) == 12


def test_monte_carlo_search_rewords_the_best_and_tries_only_what_is_new():
    engine = antonym_engine()
    settings = ApeSettings(
        subsamples=1, demonstrations=3, proposals=5, search="all", iterations=2, keep=1, variations=3
    )
    found = ape(engine, ANTONYMS, ANTONYMS, settings)
    assert found[0].instruction == "give the opposite word" and found[0].score == -2.0
    assert sorted(r.instruction for r in found) == sorted({r.instruction for r in found}) and len(found) == 5
    assert len(engine.generated) == 3 and [len(call) for call in engine.scored] == [15, 10]
    assert f"Instruction: {OPPOSITE}." in engine.generated[1][0]
    assert "Instruction: give the opposite word" in engine.generated[2][0]
    assert [p.seed for p in engine.params] == [0, 1, 2] and engine.params[1].n == 3


def test_ape_settings_and_too_few_pairs():
    wrong = {"mode": "backward", "by": "luck", "search": "grid", "keep": 0, "iterations": -1, "confirm": -1}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=name):
            ApeSettings(**{name: value})
    with pytest.raises(DataError, match="shows 5 pairs and there are 2"):
        ape(antonym_engine(), ANTONYMS[:2], ANTONYMS)
    with pytest.raises(DataError, match="no pairs"):
        ape(antonym_engine(), ANTONYMS, [])
    with pytest.raises(DataError, match="none of 50 answers"):
        propose(ScriptedEngine(lambda prompt: [" \n", ':""']), [ANTONYMS])


def test_a_chat_model_is_asked_in_a_users_turn():
    engine = ScriptedEngine(lambda turns: [turns[0]["role"]])
    assert propose(engine, [ANTONYMS], SamplingParams(), chat=True) == {"user": 1}
    assert engine.generated[0][0][0]["content"].startswith("Somebody")


def test_a_tiny_model_end_to_end_with_likelihoods_as_by_plain_forwards():
    engine = tiny_engine()
    settings = ApeSettings(
        subsamples=2, demonstrations=2, proposals=4, max_tokens=8, search="all", iterations=1, keep=2
    )
    found = ape(engine, ANTONYMS, ANTONYMS[:3], settings)
    assert found == ape(engine, ANTONYMS, ANTONYMS[:3], settings)
    assert len(found) == len({r.instruction for r in found}) > 3
    for ranked in found:
        values = []
        for pair in ANTONYMS[:3]:
            context = f"Instruction: {ranked.instruction}\n\nInput: {pair.input}\nOutput:"
            values.append(np.mean(token_logprobs(engine, context, f" {pair.answers[0]}")))
        assert ranked.score == pytest.approx(np.mean(values), abs=1e-4)


def test_execution_judge_is_the_engines_greedy_answer():
    engine = tiny_engine()
    context = MetaPrompts().context("copy", Pair("hot", ("",)).example).rstrip()
    said = engine.generate([context], SamplingParams(max_tokens=30, temperature=0))[0].text
    judge = execution_judge(engine, lambda text, answers: float(text == answers[0]))
    assert list(judge([("copy", Pair("hot", (said,))), ("copy", Pair("hot", ("else",)))])) == [1.0, 0.0]


def test_likelihood_of_an_answer_without_tokens_is_an_error():
    with pytest.raises(DataError, match="no token to score"):
        likelihood_judge(tiny_engine())([("a", Pair("b", (" ",)))])
    with pytest.raises(DataError, match="no token to score"):
        score(tiny_engine(), [("a", "")], "x")


def test_gaps_are_filled_by_an_encoder_decoder():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    engine = LocalEngine(model, make_tokenizer(["<extra_id_0>", "<extra_id_1>"]))
    params = SamplingParams(max_tokens=12, n=6, seed=0)
    for mode in ("reverse", "insert"):
        found = propose(engine, [ANTONYMS], params, mode)
        assert found and not any("extra_id" in text for text in found)
    bare = LocalEngine(model, make_tokenizer())
    with pytest.raises(ConfigError, match="no gap token"):
        propose(bare, [ANTONYMS], params, "insert")


def test_models_that_fill_no_gaps_say_so():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    masked = LocalEngine(AutoModelForMaskedLM.from_config(BertConfig(vocab_size=320, **size)), make_tokenizer())
    for engine, word in ((tiny_engine(), "causal"), (masked, "masked LM"), (ScriptedEngine(), "server")):
        with pytest.raises(ConfigError, match=word):
            propose(engine, [ANTONYMS], mode="reverse")
    with pytest.raises(DataError, match="cannot generate"):
        propose(masked, [ANTONYMS])
    with pytest.raises(ConfigError, match="forward"):
        propose(tiny_engine(), [ANTONYMS], mode="sideways")


def test_a_prompt_that_does_not_fit_is_named():
    with pytest.raises(DataError, match="proposals: 1 of 1 failed.*context is 64"):
        propose(tiny_engine(context=64), [ANTONYMS])


def test_resampling_asks_for_each_instruction_once():
    engine = antonym_engine()
    assert resample(engine, ["a", "b"])["give the opposite word"] == 2
    assert [len(call) for call in engine.generated] == [2]


def test_induction_weighs_by_how_often_an_instruction_was_written():
    said = iter([": write the opposite.", " write the opposite.", " repeat it"])
    base = antonym_engine()
    engine = ScriptedEngine(lambda prompt: [next(said)] if prompt.endswith("was") else base.says(prompt))
    asked = induction_prompts(ANTONYMS, count=3, demonstrations=2)
    assert len(set(asked)) > 1 and all(prompt.count("Input:") == 2 for prompt in asked)
    found = induce(engine, asked, ANTONYMS)
    good, bad = found.ranked
    assert (good.instruction, good.score, good.times) == ("write the opposite.", 1, 2)
    assert (bad.instruction, bad.score, bad.times) == ("repeat it", 0, 1)
    assert found.accuracy == pytest.approx(2 / 3) and len(engine.generated) == 2
    assert engine.params[0].temperature == 0 and engine.params[1].max_tokens == 30


@pytest.mark.parametrize(
    "name,said,answers,value",
    [
        ("em", " Cold.\nInput: x", ["cold"], 1), ("em", "cold water", ["cold"], 0), ("em", "a", ["a"], 1),
        ("em", "b", ["a", "b"], 1), ("em", " and so\n", ["and so"], 1), ("em", "", ["a"], 0),
        ("em", "well-known", ["well known"], 1),
        ("f1", "it involves going up", ["involve going up", "go up"], 4 / 7), ("f1", "no", ["yes"], 0),
        ("exact-set", "bird, bear and ant", ["ant, bear, bird"], 1), ("exact-set", "bird", ["ant, bird"], 0),
        ("contains", "maybe a process of it", ["process"], 1), ("contains", "processes", ["process"], 0),
        ("contains", "(", ["("], 0),
    ],
)  # fmt: skip
def test_metrics(name, said, answers, value):
    assert metric(name)(said, answers) == pytest.approx(value)


def test_unknown_metric():
    with pytest.raises(ConfigError, match="exact-set"):
        metric("bleu")


def write(folder: Path, under: str, task: str, rows: list[dict]) -> None:
    path = folder / under / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {}, "examples": {str(i + 1): row for i, row in enumerate(rows)}}))


def test_the_data_sets_files(tmp_path):
    write(tmp_path, "raw/execute", "antonyms", [{"input": "hot", "output": "cold"}])
    write(tmp_path, "raw/execute", "rhymes", [{"input": "ice", "output": "rice", "other_rhymes": ["dice", "rice"]}])
    concept = {"concept": "go up.", "items": ["lifts", "larks"], "all_common_concepts": ["go up.", "rise."]}
    write(tmp_path, "raw/induce", "common_concept", [concept])
    write(tmp_path, "raw/execute", "cause_and_effect", [{"cause": "It rained.", "effect": "It is wet."}] * 20)
    write(tmp_path, "raw/execute", "broken", [{"input": "x"}])
    write(tmp_path, "induction_input", "antonyms", [{"input": "The instruction was", "metadata": {}}])
    assert read_pairs(tmp_path, "antonyms") == [Pair("hot", ("cold",))]
    assert read_pairs(tmp_path, "rhymes") == [Pair("ice", ("rice", "dice"))]
    assert read_pairs(tmp_path, "common_concept", "induce") == [Pair("lifts, larks", ("go up.", "rise."))]
    causes = read_pairs(tmp_path, "cause_and_effect", seed=3)
    assert causes == read_pairs(tmp_path, "cause_and_effect", seed=3) and len({p.input for p in causes}) == 2
    assert {p.answers for p in causes} == {("It rained.",)}
    assert read_prompts(tmp_path, "antonyms") == ["The instruction was"]
    with pytest.raises(DataError, match="did you mean 'antonyms'"):
        read_pairs(tmp_path, "antonym")
    with pytest.raises(DataError, match="broken.json: example 1: no 'output'"):
        read_pairs(tmp_path, "broken")


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('evaluation = "{instruction}\\n{input} ->{output}"\nparaphrase = ["{text} =", "or {text}:"]')
    mine = load_prompts(path)
    assert mine.context("do {input}", review("x{y}")) == "do {input}\nx{y} ->"
    assert mine.paraphrase == ("{text} =", "or {text}:") and mine.forward == MetaPrompts().forward
    for text, word in (
        ('evaluation = "{instruction} {input}"', "evaluation.*{output}"), ('foward = ""', "did you mean 'forward'"),
        ('forward = "{demonstrations} {task}"', "forward.*unknown slot {task}"),
        ("paraphrase = []", "paraphrase.*empty"), ('paraphrase = ["x"]', "paraphrase.*{text}"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"mine.toml: .*{word}"):
            load_prompts(path)


def test_examples_as_pairs():
    found = pairs_of([review("fine", 1), Example({}, "1+1", answer="2")])
    assert found == [Pair("fine", ("positive",)), Pair("1+1", ("2",))]
    with pytest.raises(DataError, match="example 0.*no gold"):
        pairs_of([Example({}, "1+1")])
    with pytest.raises(DataError, match="no answer"):
        Pair("x", ())


def test_judge_all_puts_the_best_first_whatever_the_order():
    judge = lambda asked: [len(i) - 2.0 * len(p.input) for i, p in asked]  # noqa: E731
    found = judge_all(judge, {"a": 1, "abc": 4}, ANTONYMS[:2])
    assert [(r.instruction, r.score, r.evaluations, r.times) for r in found] == [("abc", -2, 2, 4), ("a", -4, 2, 1)]


@pytest.mark.real
def test_stories260k_on_antonyms(real_data: Path):
    folder = real_data / "icl/instruction_induction"
    engine = load(real_data / "weights/stories260K/hf")
    settings = ApeSettings(
        subsamples=3, demonstrations=5, proposals=10, max_tokens=20, rounds=6, iterations=1, keep=3, variations=4
    )
    shown, held_out = read_pairs(folder, "antonyms", "induce")[:200], read_pairs(folder, "antonyms")[:40]
    found = ape(engine, shown, held_out, settings)
    assert len(found) == len({r.instruction for r in found}) >= 10
    assert [r.evaluations for r in found[:5]] == [40] * 5
    assert 0 > found[0].score >= found[4].score
    people = judge_all(likelihood_judge(engine), read_annotations(folder, "antonyms"), held_out)
    print("APE", found[0], "people", people[0])


@pytest.mark.real
def test_every_task_of_instruction_induction_is_read_and_graded(real_data: Path):
    folder = real_data / "icl/instruction_induction"
    tasks = sorted(path.stem for path in (folder / "raw/execute").glob("*.json"))
    assert len(tasks) == 24 and set(METRICS) <= set(tasks)
    for task in tasks:
        assert len(read_prompts(folder, task)) == 100 and read_annotations(folder, task)
        for split in ("induce", "execute"):
            pairs = read_pairs(folder, task, split)
            measure = metric(METRICS.get(task, "em"))
            assert all(measure(f" {pair.answers[0]}\n", pair.answers) == 1 for pair in pairs), task
