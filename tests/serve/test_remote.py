"""Our own RemoteEngine against our own server, and a server in front of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serve.conftest import CHAT, Running, post, running, until
from tests.servers import JsonHandler, serving
from tutelage.engine import LocalEngine, RemoteEngine, SamplingParams, load


@pytest.fixture(scope="module")
def remote(server: Running) -> Iterator[RemoteEngine]:
    made = load(f"{server.url}/v1")
    assert isinstance(made, RemoteEngine)
    yield made
    made.close()


def test_generation_is_the_same_over_http(remote: RemoteEngine, engine: LocalEngine) -> None:
    assert remote.model == "tiny"
    params = SamplingParams(
        max_tokens=20, temperature=0.8, top_k=9, min_p=0.01, n=2, stop=("ee",), seed=4, logprobs=3,
        banned_tokens=(30, 31), repetition_penalty=1.1, logit_bias={40: 2.0}, stop_tokens=(50,),
    )  # fmt: skip
    prompts: list[Any] = ["the cat", "你好", engine.encode("one two"), CHAT]
    for mine, theirs in zip(engine.generate(prompts, params), remote.generate(prompts, params), strict=True):
        assert theirs.error is None
        for a, b in zip(mine.completions, theirs.completions, strict=True):
            assert a.text == b.text and b.logprobs == pytest.approx(a.logprobs, abs=1e-4)
            assert b.finish_reason == ("length" if a.finish_reason == "length" else "stop")
            assert a.top_logprobs is not None and b.top_logprobs is not None
            assert [max(t.values()) for t in b.top_logprobs] == pytest.approx(
                [max(t.values()) for t in a.top_logprobs], abs=1e-4
            )


def test_scores_are_the_same_over_http(remote: RemoteEngine, engine: LocalEngine) -> None:
    pairs: list[Any] = [
        ("the cat sat on", " the mat"), ("one two ", "three four"), ("你好", "，世界"), ("naïve café", " déjà"),
        (engine.encode("one two"), engine.encode(" three")), ("the cat", ""),
    ]  # fmt: skip
    for mine, theirs in zip(engine.score(pairs), remote.score(pairs), strict=True):
        assert theirs.error is None and theirs.logprob == pytest.approx(mine.logprob, abs=1e-3)
        assert theirs.is_greedy == mine.is_greedy
    first = engine.generate(["the cat"], SamplingParams(max_tokens=2, temperature=0))[0].completions[0]
    greedy = remote.score([(engine.encode("the cat"), list(first.tokens))])[0]
    assert greedy.is_greedy


def test_streams_are_the_same_over_http(remote: RemoteEngine, engine: LocalEngine) -> None:
    for prompt in ("the cat", CHAT):
        params = SamplingParams(max_tokens=30, seed=9)
        mine = "".join(piece.text for piece in engine.stream(prompt, params))
        pieces = list(remote.stream(prompt, params))
        assert "".join(piece.text for piece in pieces) == mine and pieces[-1].finish_reason in ("stop", "length")


@pytest.fixture
def front(server: Running) -> Iterator[Running]:
    with running({"far": RemoteEngine(f"{server.url}/v1", workers=8, retries=0)}) as one:
        yield one


def test_a_server_before_a_server(front: Running, client: openai.OpenAI, server: Running) -> None:
    asked: dict[str, Any] = {"messages": CHAT, "max_tokens": 15, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2}
    expected = client.chat.completions.create(model="tiny", **asked)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="x", max_retries=0) as through:
        found = through.chat.completions.create(model="far", **asked)
        assert found.model == "far" and found.choices == expected.choices and found.usage == expected.usage
        chunks = list(through.chat.completions.create(model="far", **asked, stream=True))
        for i in range(2):
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == i)
            assert said == expected.choices[i].message.content
        assert {c.model for c in chunks} == {"far"}
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="context"):
                list(through.completions.create(model="far", prompt="one " * 900, stream=stream))
        with pytest.raises(openai.BadRequestError, match="n: "):
            through.completions.create(model="far", prompt="one", n=999)
    assert front.metric("tutelage_requests_total") > 0
    until(lambda: front.desk._flying == 0)


def test_a_client_of_the_front_that_leaves_frees_the_far_place(front: Running, server: Running) -> None:
    import socket

    from tests.serve.test_limits import LONG, Slow, bytes_of

    with Slow(server.desk.engine, 0.01), socket.create_connection(("127.0.0.1", front.port)) as link:
        link.sendall(bytes_of(front, "/v1/completions", {**LONG, "model": "far", "stream": True}))
        until(lambda: server.desk.asks)
        link.recv(100)
        link.close()
        until(lambda: not server.desk.asks, 3)
    until(lambda: front.desk._flying == 0)


def test_a_far_server_that_fails_is_a_502() -> None:
    from http.server import ThreadingHTTPServer

    class Broken(JsonHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "x"}]})

        def do_POST(self) -> None:
            self.body()
            self.answer({"error": {"message": "boom"}}, 500)

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Broken)) as url:
        with running({"far": RemoteEngine(url, retries=0)}) as front:
            for stream in (False, True):
                found = post(front, "/v1/completions", {"prompt": "a", "stream": stream})
                assert found.status_code == 502 and "boom" in found.json()["error"]["message"]
    with running({"far": RemoteEngine("http://127.0.0.1:9/v1", retries=0)}) as front:
        assert post(front, "/v1/chat/completions", {"messages": CHAT}).status_code == 502
