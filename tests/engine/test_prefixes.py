"""Beginnings that are kept from one session to the next: never another answer, and no second computation."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.engine.test_crowd import watched
from tests.engine.test_live import Loop
from tests.engine.tiny_families import VOCAB, Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.local import LocalEngine
from tutelage.engine.prefixes import BLOCK, Prefixes


def tokens(r: random.Random, count: int) -> list[int]:
    return [r.randrange(2, VOCAB) for _ in range(count)]


def ask(loop: Loop, name: Any, prompt: list[int], params: SamplingParams) -> None:
    loop.submit(name, prompt, params)
    loop.wait(len(loop.ends) + params.n)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "opt"])
def test_answers_are_those_of_an_engine_that_keeps_nothing(family: str) -> None:
    """Random conversations that grow, with common system messages, one at a time and in crowds, in a small budget."""
    r = random.Random(3)
    model = build(family, sharp=2.0)
    free = LocalEngine(model, Numbers())
    size = free.support.token_bytes
    loop = Loop(LocalEngine(model, Numbers(), kv_bytes=600 * size, prefix_bytes=200 * size))
    heads = [tokens(r, n) for n in (16, 37, 70)]
    past = [[*head, *tokens(r, 3)] for head in heads]
    asked = []
    for i in range(40):
        prompt = [*r.choice([*heads, *past]), *tokens(r, r.randint(1, 6))][:110]
        past.append(prompt)
        asked.append((prompt, SamplingParams(max_tokens=8, seed=i, n=r.choice([1, 1, 3]), temperature=0.8)))
    with watched(loop.engine):
        for i, (prompt, params) in enumerate(asked):
            ask(loop, i, prompt, params) if i % 4 else loop.submit(i, prompt, params)
        loop.wait(sum(p.n for _, p in asked))
    for i, output in enumerate(free.generate([p for p, _ in asked], [p for _, p in asked])):
        for j, made in enumerate(output.completions):
            end = loop.ends[i, j]
            assert tuple(end.tokens) == made.tokens and end.logprobs == pytest.approx(list(made.logprobs), abs=1e-3)
    kept = loop.engine._scheduler.prefixes
    assert kept is not None and 0 < kept.tokens <= 200
    assert kept.tokens == sum(len(p.tokens) for p in kept._kept.values())
    assert loop.engine.counts.computed < 0.8 * loop.engine.counts.asked
    assert loop.engine._scheduler.used() == 0
    loop.live.close()


def test_the_third_time_a_beginning_is_not_computed() -> None:
    loop = Loop(LocalEngine(build("llama"), Numbers(), prefix_bytes=1 << 20))
    r = random.Random(0)
    head, computed = tokens(r, 70), []
    for i in range(4):
        before = loop.engine.counts.computed
        ask(loop, i, [*head, *tokens(r, 2)], SamplingParams(max_tokens=2))
        computed.append(loop.engine.counts.computed - before)
    assert computed == [72, 72, 72 - 64, 72 - 64]
    before = loop.engine.counts.computed
    ask(loop, "same", head[:64], SamplingParams(max_tokens=2))  # its end's logits are needed
    assert 0 < loop.engine.counts.computed - before <= 64
    loop.live.close()


def test_a_crowd_with_a_kept_beginning() -> None:
    """Several rows of one session begin with what earlier sessions had, and one of them ends inside it."""
    model = build("llama", sharp=2.0)
    loop, free = Loop(LocalEngine(model, Numbers(), prefix_bytes=1 << 20)), LocalEngine(model, Numbers())
    r = random.Random(1)
    head = tokens(r, 50)
    params = SamplingParams(max_tokens=6, temperature=0)
    for i in range(3):
        ask(loop, f"warm{i}", [*head, *tokens(r, 2)], params)
    step = loop.engine._scheduler.step
    loop.engine._scheduler.step = lambda: (time.sleep(0.05), step())  # type: ignore[method-assign]
    asked = [head[:32], head[:20], *[[*head, *tokens(r, 3)] for _ in range(5)], [*head[:40], *tokens(r, 3)]]
    loop.submit("first", tokens(r, 5), params)
    time.sleep(0.02)
    for i, prompt in enumerate(asked):
        loop.submit(i, prompt, params)
    loop.wait(3 + 1 + len(asked))
    for i, output in enumerate(free.generate(asked, params)):
        assert tuple(loop.ends[i, 0].tokens) == output.completions[0].tokens
    loop.live.close()


def test_what_is_found_is_never_the_whole_prompt_and_the_oldest_goes() -> None:
    prefixes = Prefixes(3 * BLOCK)
    assert prefixes.find([5] * 40) == (None, 0)
    assert prefixes.find([5] * 33)[1] == 32 and prefixes.find([5] * 32)[1] == 16 and prefixes.find([5] * 16)[1] == 0
    assert Prefixes(8).find([5] * 40)[1] == Prefixes(8).find([5] * 40)[1] == 0
