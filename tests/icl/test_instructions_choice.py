"""Prompt choice without labels: SPELL's perplexity and mutual information, against plain forwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.icl.instruction_helpers import REVIEWS, ScriptedEngine, review, tiny_engine, token_logprobs
from tutelage.core.errors import DataError
from tutelage.engine import SamplingParams
from tutelage.icl.entropy import mutual_information
from tutelage.icl.examples import Example
from tutelage.icl.instructions import (
    MetaPrompts,
    by_information,
    by_perplexity,
    expand,
    in_format,
    spell,
    whole_template,
)
from tutelage.icl.prompts import Prompter
from tutelage.icl.scoring import Job, score_jobs

INPUTS = [review(text) for text in ("a warm film", "two hours that feel like ten", "dull")]
WHICH = [(0, q) for q in range(len(INPUTS))]
WORDINGS = ["Say what the review thinks.", "Is it good or bad?", "zq zq zq"]


def test_perplexity_equals_plain_forwards():
    engine = tiny_engine()
    found = by_perplexity(engine, WORDINGS, INPUTS)
    plain = {
        wording: np.mean([np.mean(token_logprobs(engine, "", MetaPrompts().context(wording, x))) for x in INPUTS])
        for wording in WORDINGS
    }
    assert {r.instruction: r.score for r in found} == pytest.approx(plain, abs=1e-4)
    assert [r.instruction for r in found] == sorted(WORDINGS, key=lambda w: -plain[w])
    assert all(r.evaluations == 3 for r in found)


def test_spell_expands_translates_and_keeps_the_lowest_perplexities():
    engine = ScriptedEngine(
        lambda prompt: [f" {prompt[:4]}"], lambda context, text: [-1.0 * len(text.split("\n")[0])] * 3
    )
    given = []

    def back_translate(texts):
        given.append(list(texts))
        return ["Do", "Do\nmore", ""]

    found = spell(engine, ["Judge it."], INPUTS, back_translate=back_translate)
    assert len(engine.generated) == 1 == len(engine.scored) and len(engine.generated[0]) == 7
    assert given[0][0] == "Judge it." and len(given[0]) > 3
    assert len(found) == 3 and found[0].instruction == "Do"
    candidates = len(engine.scored[0]) // len(INPUTS)
    assert candidates == len(given[0]) + 1
    assert found[0].score == -len("Instruction: Do") and found[0].score >= found[1].score >= found[2].score


def test_spell_with_a_tiny_model_and_whole_templates():
    engine = tiny_engine()
    seeds = ["{text} It was", "What is said of {text}?"]
    found = spell(engine, seeds, INPUTS, keep=2, params=SamplingParams(max_tokens=6, seed=0), render=whole_template)
    assert len(found) == 2 and found[0].score >= found[1].score
    assert math.isfinite(math.exp(-found[0].score))


def test_spells_bad_input():
    with pytest.raises(DataError, match="seeds is empty"):
        expand(ScriptedEngine(), [])
    with pytest.raises(DataError, match="list of texts"):
        expand(ScriptedEngine(lambda prompt: ["x"]), ["a"], back_translate=lambda texts: "abc")
    with pytest.raises(DataError, match="0 examples"):
        by_perplexity(ScriptedEngine(), ["a"], [])
    with pytest.raises(DataError, match="does not show the input"):
        spell(ScriptedEngine(), ["Is it good?"], INPUTS, render=whole_template)
    with pytest.raises(DataError, match="does not show the input"):
        by_information(ScriptedEngine(), ["{sentence} It was"], INPUTS, whole_template)


def test_spell_drops_paraphrases_that_lost_the_input():
    said = iter(["It was", "{text} So", "{txt} So", "{text} It was", "", "x", "y"])
    engine = ScriptedEngine(lambda prompt: [next(said)], lambda context, text: [-1.0])
    found = spell(engine, ["{text} It was"], INPUTS, render=whole_template)
    assert [r.instruction for r in found] == ["{text} It was", "{text} So"]


def test_information_equals_plain_forwards():
    engine = tiny_engine()
    templates = ["{text} It was", "Review: {text}\nSentiment:", "{text} {answer}"]
    found = by_information(engine, templates, INPUTS, whole_template)
    for ranked in found:
        rows = []
        for example in INPUTS:
            context = ranked.instruction.replace("{text}", example.text).removesuffix("{answer}").rstrip()
            raw = [math.exp(sum(token_logprobs(engine, context, f" {o}"))) for o in ("negative", "positive")]
            rows.append([p / sum(raw) for p in raw])
        mean = [sum(column) / len(rows) for column in zip(*rows)]
        plain = sum(p * math.log(p) for row in rows for p in row) / len(rows) - sum(p * math.log(p) for p in mean)
        assert ranked.score == pytest.approx(plain, abs=1e-4)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)


def test_information_prefers_sure_and_differing_predictions_in_one_call():
    def scores(context: str, option: str) -> list[float]:
        sure = {"split": context.endswith("x"), "same": True}.get(context.split()[0])
        return [0.0 if sure is None or sure == (option == " negative") else -9.0]

    engine = ScriptedEngine(scores=scores)
    examples = [review("w"), review("x")]
    found = by_information(engine, ["same", "open", "split"], examples, lambda c, example: f"{c} {example.text}")
    assert found[0].instruction == "split" and found[0].score == pytest.approx(math.log(2), abs=2e-3)
    assert [r.score for r in found[1:]] == pytest.approx([0, 0], abs=1e-9) and len(engine.scored) == 1


def test_informations_bad_input():
    with pytest.raises(DataError, match="example 1 has 1 options"):
        by_information(ScriptedEngine(), ["a"], [review("x"), Example({}, "y", ("one",))])
    with pytest.raises(DataError, match="0 examples"):
        by_information(ScriptedEngine(), ["a"], [])


def test_instructions_in_a_tasks_own_format():
    render = in_format(REVIEWS, [review("fine", 1)])
    shown = "Review: fine\nSentiment: positive\n\nReview: dull\nSentiment: "
    assert render("Judge.", review("dull")) == f"Judge.\n\n{shown}"
    engine = tiny_engine()
    found = by_information(engine, ["Judge.", "Say it:"], INPUTS, in_format(REVIEWS))
    forms = [REVIEWS.model_copy(update={"instruction": r.instruction}) for r in found]
    jobs = [Job(Prompter(form), [()], INPUTS, WHICH) for form in forms]
    logprobs = np.array([scores.logprob for scores in score_jobs(engine, jobs)])
    assert [r.score for r in found] == pytest.approx(mutual_information(logprobs), abs=1e-4)
