"""Every method with a real engine on a tiny random model, in this process and behind HTTP: the same words."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.icl.reasoning_engines import served
from tutelage.core.errors import DataError
from tutelage.engine import LocalEngine, SamplingParams
from tutelage.icl.reasoning import METHODS, Problem, ReasonSettings, reason
from tutelage.icl.reasoning.auto_cot import embed
from tutelage.icl.reasoning.exemplars import NUMBER
from tutelage.icl.reasoning.prompts import STOP, ask
from tutelage.model.presets import build_config
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import train_tokenizer

PROBLEMS = [
    Problem("Ann has 3 eggs and gets 2. How many?", "5"),
    Problem("Bo had 9 pens and lost 4. How many are left?", "5"),
    Problem("A box holds 6 cups. How many do 7 boxes hold?", "42"),
]


def make(context: int) -> LocalEngine:
    tokenizer = train_tokenizer([f"Q: {p.text}\nA: {p.rationale} The answer is {p.answer}." for p in NUMBER], 400)
    ensure_chat(tokenizer)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build_config("laptop-0.3m", len(tokenizer), context)).eval()
    with torch.no_grad():  # sharper logits, so that greedy choices are clear
        model.get_output_embeddings().weight.mul_(8)
    return LocalEngine(model, tokenizer)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return make(2048)


def small(**more: object) -> ReasonSettings:
    return ReasonSettings(**{"max_tokens": 12, "answer_tokens": 4, "paths": 3, "shots": 2, "clusters": 2, **more})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chat", [False, True])
def test_local_and_remote_say_the_same(engine: LocalEngine, method: str, chat: bool) -> None:
    settings = small(chat=chat, tool=lambda question: "so", max_hops=2)
    here = reason(method, engine, PROBLEMS, settings, seed=3)
    with served(engine) as remote:
        there = reason(method, remote, PROBLEMS, settings, seed=3)
    assert [r.texts for r in here.results] == [r.texts for r in there.results]
    assert [r.prediction for r in here.results] == [r.prediction for r in there.results]
    assert not any(r.error for r in here.results) and here.accuracy == there.accuracy
    assert here.prompt_tokens > 0 and here.generated_tokens > 0 and here.requests == there.requests
    assert there.prompt_tokens is None  # a server does not tell


def test_paths_are_the_engines_samples(engine: LocalEngine) -> None:
    result = reason("self_consistency", engine, PROBLEMS, small(weighting="unnormalised"), seed=5)
    params = SamplingParams(max_tokens=12, temperature=0.7, n=3, seed=5, stop=STOP)
    outputs = engine.generate([ask(NUMBER[:2], p, False) for p in PROBLEMS], params)
    for found, output in zip(result.results, outputs, strict=True):
        assert found.texts == tuple(c.text for c in output.completions)
        assert [p.logprob for p in found.paths] == pytest.approx([sum(c.logprobs) for c in output.completions])
    assert result.prompt_tokens == sum(len(o.prompt_tokens) for o in outputs)
    assert result.generated_tokens == sum(len(c.tokens) for o in outputs for c in o.completions)
    assert len(result.curve) == 3


@pytest.mark.parametrize("chat", [False, True])
def test_weights_of_a_server(engine: LocalEngine, chat: bool) -> None:
    settings = small(weighting="normalised", chat=chat)
    here = reason("self_consistency", engine, PROBLEMS, settings, seed=1)
    with served(engine) as remote:
        there = reason("self_consistency", remote, PROBLEMS, settings, seed=1)
    for one, other in zip(here.results, there.results, strict=True):
        assert [p.logprob for p in one.paths] == pytest.approx([p.logprob for p in other.paths], abs=1e-4)
    if any(any(r.texts) for r in here.results):  # a chat of this random model may end at once
        with served(engine, logprobs=False) as mute, pytest.raises(DataError, match="the server gave none"):
            reason("self_consistency", mute, PROBLEMS, settings)


def test_demonstrations_are_cut_as_a_set_to_the_context() -> None:
    narrow = make(256)
    result = reason("few_shot_cot", narrow, PROBLEMS, small(shots=8))
    assert 0 < len(result.exemplars) < 8 and not any(r.error for r in result.results)
    assert result.notes == (f"{len(result.exemplars)} of 8 demonstrations fit the context of 256 tokens",)
    longest = max(len(narrow.encode(ask(result.exemplars, p, False))) for p in PROBLEMS)
    more = max(len(narrow.encode(ask(NUMBER[: len(result.exemplars) + 1], p, False))) for p in PROBLEMS)
    assert longest + 12 <= 256 < more + 12
    lengthy = [*PROBLEMS, Problem("so " * 400, "1")]
    failed = reason("zero_shot_cot", narrow, lengthy, small())
    assert [r.error is None for r in failed.results] == [True] * 3 + [False]
    assert "1 of 4 problems got no answer" in failed.notes[0] and "context is 256" in failed.notes[0]


def test_hidden_states_are_the_models(engine: LocalEngine) -> None:
    texts = ["one", "Ann has three eggs and more", "two birds"]
    found = embed(texts, "hidden", engine)
    for text, vector in zip(texts, found, strict=True):
        with torch.no_grad():
            states = engine.model(torch.tensor([engine.encode(text)]), output_hidden_states=True).hidden_states[-1][0]
        alone = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert abs(alone - vector).max() < 1e-5
