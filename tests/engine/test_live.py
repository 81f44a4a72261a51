"""Decoding for an event loop: what is delivered, what is cancelled, and what other threads do meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.engine.tiny_families import VOCAB, Numbers, build
from tutelage.engine import SamplingParams
from tutelage.engine.live import Event, Job, Live
from tutelage.engine.local import LocalEngine
from tutelage.engine.rows import Finished, Request
from tutelage.engine.texts import Growing, Texts, certain


class Loop:
    """Stands for the event loop: keeps what was delivered, by reader."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.told: dict[Any, list[tuple[int, float, Any]]] = {}
        self.ends: dict[Any, Any] = {}
        self.calls = 0
        self.live = Live(engine, self.deliver)

    def deliver(self, events: list[Event]) -> None:
        self.calls += 1
        for reader, token, value, top in events:
            if token >= 0:
                assert reader not in self.ends
                self.told.setdefault(reader, []).append((token, value, top))
            else:
                self.ends[reader] = value

    def submit(self, name: Any, prompt: list[int], params: SamplingParams) -> Job:
        rows = self.engine.rows(prompt, params)
        return self.live.submit(rows, [(name, i) for i in range(len(rows))])

    def wait(self, count: int, seconds: float = 30) -> None:
        end = time.time() + seconds
        while len(self.ends) < count:
            assert time.time() < end, f"{len(self.ends)} of {count}"
            time.sleep(0.002)


@pytest.fixture(params=["llama", "gemma3", "bloom"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    made = Loop(LocalEngine(build(request.param, sharp=2.0), Numbers(), max_rows=16))
    yield made
    made.live.close()
    assert not made.live._thread.is_alive()


def prompts(count: int) -> list[list[int]]:
    r = random.Random(0)
    head = [r.randrange(2, VOCAB) for _ in range(20)]
    return [head[: r.choice([3, 20])] + [r.randrange(2, VOCAB) for _ in range(r.randint(1, 5))] for _ in range(count)]


def test_what_is_delivered_is_what_generate_gives(loop: Loop) -> None:
    asked = prompts(24)
    each = [SamplingParams(max_tokens=3 + i % 9, seed=i, n=1 + i % 2, logprobs=i % 3 or None) for i in range(24)]
    for i, (prompt, params) in enumerate(zip(asked, each)):
        loop.submit(i, prompt, params)
        if i % 5 == 0:
            time.sleep(0.01)  # some arrive together, some in the middle of others
    loop.wait(sum(p.n for p in each))
    for i, output in enumerate(loop.engine.generate(asked, each)):
        for j, made in enumerate(output.completions):
            end = loop.ends[i, j]
            assert isinstance(end, Finished) and tuple(end.tokens) == made.tokens
            told = loop.told[i, j]
            assert [token for token, _, _ in told] == end.tokens
            assert [value for _, value, _ in told] == pytest.approx(end.logprobs)
            assert [top for _, _, top in told] == (end.top if each[i].logprobs else [None] * len(told))
    assert not loop.live.busy and loop.live.waiting == 0


def test_a_step_is_one_call(loop: Loop) -> None:
    if not loop.engine.support.plans:
        pytest.skip("static batches tell every token by itself")
    jobs = [(i, p, SamplingParams(max_tokens=10, seed=i, banned_tokens=(1,))) for i, p in enumerate(prompts(12))]
    for job in jobs:
        loop.submit(*job)
    loop.wait(12)
    assert loop.calls < 40  # 120 tokens


def test_cancelled_jobs_leave_and_the_others_stay_the_same(loop: Loop) -> None:
    asked = prompts(12)
    params = [SamplingParams(max_tokens=60, seed=i, n=2, banned_tokens=(1,)) for i in range(12)]
    jobs = [loop.submit(i, prompt, p) for i, (prompt, p) in enumerate(zip(asked, params))]
    while len(loop.told) < 8:
        time.sleep(0.001)
    for job in jobs[::2]:
        loop.live.cancel(job)
        loop.live.cancel(job)  # twice is once
    end = time.time() + 30
    while loop.live.busy and time.time() < end:
        time.sleep(0.002)
    assert not loop.live.busy
    for i, output in enumerate(loop.engine.generate(asked[1::2], params[1::2])):
        for j, made in enumerate(output.completions):
            assert tuple(loop.ends[2 * i + 1, j].tokens) == made.tokens
    if loop.engine.support.plans:
        assert loop.engine._scheduler.used() == 0 and not loop.engine._scheduler.sessions


def test_other_threads_generate_meanwhile(loop: Loop) -> None:
    asked = prompts(30)
    params = SamplingParams(max_tokens=20, temperature=0)
    expected = [o.completions[0].tokens for o in loop.engine.generate(asked, params)]
    found: dict[int, Any] = {}

    def one(i: int) -> None:
        found[i] = loop.engine.generate([asked[i]], params)[0].completions[0].tokens

    threads = [threading.Thread(target=one, args=(i,)) for i in range(0, 30, 3)]
    for i in range(30):
        if i % 3:
            loop.submit(i, asked[i], params)
        else:
            threads[i // 3].start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    loop.wait(20)
    for i in range(30):
        assert (found[i] if i % 3 == 0 else tuple(loop.ends[i, 0].tokens)) == expected[i]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_an_error_is_told_and_the_next_ones_are_served(family: str, caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(LocalEngine(build(family), Numbers()))
    forward = loop.engine.model.forward
    loop.engine.support  # noqa: B018  (tried before the forward breaks)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    loop.engine.model.forward = broken
    for i in range(3):
        loop.submit(i, [5, 6, 7], SamplingParams(max_tokens=5))
    loop.wait(3)
    assert all("out of memory" in str(end) for end in loop.ends.values())
    loop.engine.model.forward = forward
    loop.submit("next", [5, 6, 7], SamplingParams(max_tokens=5, banned_tokens=(1,)))
    loop.wait(4)
    assert len(loop.ends["next", 0].tokens) == 5 and "decoding failed" in caplog.text
    loop.live.close()


@pytest.mark.parametrize("template", ["$A", "<s> $A"])
def test_a_growing_text_is_the_whole_text(make_tokenizer: Any, template: str) -> None:
    tokenizer = make_tokenizer(template)
    texts = Texts(tokenizer)
    r = random.Random(1)
    said = list(tokenizer("naïve 你好 😀 the cat", add_special_tokens=False)["input_ids"])
    for trial in range(300):
        tokens = [r.randrange(len(tokenizer)) for _ in range(r.randint(0, 20))] + (said if trial % 2 else [])
        prompt = [r.randrange(4, 320) for _ in range(r.randint(1, 3))]
        stops = tuple(r.choice(["e", "the", " c", "zz", "\ufffd"]) for _ in range(trial % 3))
        growing = Growing(texts, Request(prompt, SamplingParams(stop=stops), 0), (2,))
        tokens = [token for token in tokens if token != 2]
        whole = texts.continuation(prompt, tokens)
        cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
        got = ""
        for token in tokens:
            new = growing.add(token)
            got += new
            assert whole[:cut].startswith(got)
        assert got + growing.rest(whole[:cut]) == whole[:cut]
        assert not stops or len(got) <= cut


def test_a_decoder_that_drops_blanks() -> None:
    """A word-level tokenizer, whose decoder joins words with blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = Texts(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>"))
    growing = Growing(texts, Request([1, 2], SamplingParams(), 0))
    pieces = [growing.add(token) for token in (3, 0, 1, 0, 0, 2)]
    assert "".join(pieces) == texts.continuation([1, 2], [3, 0, 1, 0, 0, 2]) == " c a b"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    assert certain("abc", ("cd",)) == 2 and certain("abcd", ("bc",)) == 1 and certain("ab\ufffd", ()) == 2
    assert certain("aab", ("abab",)) == 1 and certain("xyz", ("a",)) == 3


def test_token_texts(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("$A")
    texts = Texts(tokenizer)
    ids = tokenizer(" the naïve 你", add_special_tokens=False)["input_ids"]
    assert b"".join(texts.token(i) for i in ids).decode() == " the naïve 你"
    assert texts.token(1) == b"<s>" and Texts(None).token(5) == b"" and Texts(Numbers()).token(7) == b" 7"


def test_alternatives_of_scored_tokens() -> None:
    for family in ("llama", "bloom"):
        engine = LocalEngine(build(family, sharp=2.0), Numbers())
        ids = [9, 8, 7, 6, 5, 4]
        score = engine.score([(ids[:1], ids[1:]), (ids[:3], ids[3:])], top=3)
        with torch.no_grad():
            logprobs = engine.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for one, first in zip(score, (1, 3)):
            for at, top in enumerate(one.top_logprobs, first):
                best = logprobs[at - 1].topk(3)
                assert list(top) == best.indices.tolist()
                assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-4)
        assert engine.score([(ids[:1], ids[1:])])[0].top_logprobs == ()
