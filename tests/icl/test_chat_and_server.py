"""Scoring behind a chat template, and through a server that echoes."""

import copy

import numpy as np
import pytest

from tests.engine.test_remote_score import Server
from tests.servers import serving
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import LocalEngine, RemoteEngine
from tutelage.icl.evaluate import Bench, Setting, evaluate
from tutelage.icl.examples import Example
from tutelage.icl.prompts import MINIMAL, Format, Prompter
from tutelage.icl.scoring import Job, score_jobs

LABELS = ("bad", "good")
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def example(text, gold=0):
    return Example({"text": text}, text, LABELS, gold, LABELS[gold])


@pytest.fixture
def chatty(engine, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = TEMPLATE
    return LocalEngine(engine.model, other)


def test_a_chat_s_answer_is_scored_behind_the_template(chatty, logprob):
    demos, query = [example("fine", 1)], example("dull")
    scores = score_jobs(chatty, [Job(Prompter(MINIMAL, chat=True), [demos], [query], [(0, 0)])])[0]
    context = "<user>fine\n<assistant>good\n<user>dull\n<assistant>"
    np.testing.assert_allclose(scores.logprob[0], [logprob(context, label) for label in LABELS], atol=1e-4)


def test_demonstrations_of_a_chat_are_dropped_as_a_set(chatty):
    many = [example(f"a film number {i}", i % 2) for i in range(60)]
    queries = [example("short"), example("a rather longer question about a film"), example("word " * 400)]
    job = Job(Prompter(MINIMAL, chat=True), [many], queries, [(0, q) for q in range(3)])
    scores = score_jobs(chatty, [job])[0]
    assert 0 < scores.dropped[0] < 60 and scores.too_long == [2]
    assert [len(row) for row in scores.logprob] == [2, 2, 0]


def test_a_template_that_refuses_a_turn_says_so(chatty):
    form = Format(instruction="Judge.")
    with pytest.raises(DataError, match="no system turns"):
        score_jobs(chatty, [Job(Prompter(form, chat=True), [[]], [example("x")], [(0, 0)])])


def test_a_server_scores_the_same_texts():
    pool, queries = [example("fine", 1), example("dull")], [example("very fine", 1), example("so so")]
    with serving(Server()) as url:
        engine = RemoteEngine(url, model="m")
        (found,) = evaluate(Bench(engine, MINIMAL, MINIMAL, pool, queries), [Setting(2, "fixed")], 0)
        prefix = Prompter(MINIMAL).prefix(pool)
        for probs, query in zip(found.probs, queries):
            raw = [s.logprob for s in engine.score([(prefix + query.text + "\n", label) for label in LABELS])]
            np.testing.assert_allclose(np.log(probs[0] / probs[1]), raw[0] - raw[1], atol=1e-6)
        assert found.computed == 0  # a server does not tell
        with pytest.raises(ConfigError, match="needs a local decoder"):
            evaluate(Bench(engine, MINIMAL, MINIMAL, pool, queries), [Setting(2, "fixed", chat=True)], 0)
