"""The HTTP client against a small server that misbehaves on demand."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from tests.servers import JsonHandler, serving
from tutelage.core.errors import ConfigError, DataError
from tutelage.engine import RemoteEngine, SamplingParams, load

KEY = "sk-very/secret+key"


class Handler(JsonHandler):
    """Plays the next act of the server's script, or else answers as a good server does."""

    protocol_version = "HTTP/1.1"
    server: Stage

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = self.body()
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        with self.server.counting:
            self.server.inside += 1
            self.server.most = max(self.server.most, self.server.inside)
        try:
            (self.server.script.popleft() if self.server.script else type(self).play)(self, body)
        finally:
            with self.server.counting:
                self.server.inside -= 1

    def good(self, body: dict[str, Any]) -> None:
        if body.get("max_tokens") == 13:
            self.answer({"error": {"message": "unlucky"}}, 400)
            return
        if body.get("stream"):
            self.events([{"choices": [{"text": t, "finish_reason": None}]} for t in ("a", "b\u2028c")])
            self.events([{"choices": [{"text": "", "finish_reason": "stop"}]}], end=True)
            return
        said = f"{body['model']}:{body.get('seed')}"
        if self.path.endswith("/chat/completions"):
            choice: dict[str, Any] = {"message": {"content": said + body["messages"][-1]["content"]}}
            if body.get("logprobs"):
                choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5}]}
        else:
            choice = {"text": f"{said}{body['prompt']}", "logprobs": {"token_logprobs": [-0.25]}}
        self.answer({"choices": [{**choice, "finish_reason": "stop"}] * body["n"]})

    play = good
    """What it does when its script is at an end."""

    def events(self, events: list[Any], end: bool = False) -> None:
        """Some of a stream as one chunk each; the headers come before the first."""
        if not getattr(self, "begun", False):
            self.begun = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        for event in events:
            self.chunk(event if isinstance(event, str) else f"data: {json.dumps(event, ensure_ascii=False)}\n\n")
        if end:
            self.chunk(": kept alive\n\ndata: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
            self.begun = False

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


class Stage(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: deque[Any] = deque()
        self.seen: list[Any] = []
        self.counting = threading.Lock()
        self.inside = self.most = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@pytest.fixture
def stage() -> Iterator[Stage]:
    server = Stage()
    with serving(server):
        yield server


def status(code: int, message: str = "no", **headers: str) -> Any:
    return lambda handler, body: handler.answer({"error": {"message": message}}, code, **headers)


def hang_up(handler: Handler, body: Any) -> None:
    handler.close_connection = True


def quick(stage: Stage, **more: Any) -> RemoteEngine:
    return RemoteEngine(stage.url, "tiny", **{"backoff": 0.001, "timeout": 20.0, **more})


def test_text_chat_errors_and_streams(stage: Stage) -> None:
    engine = load(stage.url)
    assert isinstance(engine, RemoteEngine)
    each = [SamplingParams(n=2, seed=0), SamplingParams(logprobs=1), SamplingParams(max_tokens=13)]
    outputs = engine.generate(["hi", [{"role": "user", "content": "yo"}], "x"], each)
    assert [c.text for c in outputs[0].completions] == ["tiny:0hi"] * 2
    assert outputs[0].completions[0].logprobs == (-0.25,)
    assert outputs[1].text == "tiny:Noneyo" and outputs[1].completions[0].logprobs == (-0.5,)
    assert outputs[2].error == f"{stage.url}/completions answered 400: unlucky" and not outputs[2].unserved
    assert len(stage.seen) == 3  # a 400 is not tried again
    pieces = list(engine.stream("hi"))
    assert "".join(p.text for p in pieces) == "ab\u2028c" and pieces[-1].finish_reason == "stop"


def test_only_what_is_not_the_default_is_sent(stage: Stage) -> None:
    engine = quick(stage)
    more = SamplingParams(stop="END", top_k=3, banned_tokens=(7,), logit_bias={5: 1.5}, seed=0, repetition_penalty=1.1)
    engine.generate(["a\ud800", [1, 2]], [more, SamplingParams()])
    bodies = {json.dumps(b["prompt"]): b for _, b, _ in stage.seen}
    plain = {"model": "tiny", "max_tokens": 64, "temperature": 1.0, "top_p": 1.0, "n": 1}
    assert bodies["[1, 2]"] == {**plain, "prompt": [1, 2]}
    extra = {"stop": ["END"], "top_k": 3, "logit_bias": {"5": 1.5, "7": -100.0}, "repetition_penalty": 1.1, "seed": 0}
    assert bodies[json.dumps("a\ud800")] == {**plain, **extra, "prompt": "a\ud800"}


@pytest.mark.parametrize("act", [status(429, Retry_After="0.01"), status(500), status(503), hang_up])
def test_what_may_pass_is_tried_again(stage: Stage, act: Any) -> None:
    stage.script.extend([act, act])
    assert quick(stage).generate("hi")[0].text == "tiny:Nonehi" and len(stage.seen) == 3


def test_retry_after_is_obeyed_and_a_long_one_is_said(stage: Stage) -> None:
    engine = quick(stage, longest_wait=50.0)
    stage.script.append(status(429, Retry_After="0.3"))
    began = time.monotonic()
    assert not engine.generate("hi")[0].error and time.monotonic() - began >= 0.3
    stage.script.extend([status(429, "slow down", Retry_After=formatdate(time.time() + 3600, usegmt=True))])
    output = engine.generate("hi")[0]
    assert "429: slow down (asks to wait 3" in (output.error or "") and output.unserved
    stage.script.append(status(429, Retry_After="soon"))  # neither a number nor a date: the usual wait
    assert not engine.generate("hi")[0].error


@pytest.mark.parametrize(("code", "unserved"), [(400, False), (401, True), (404, True), (422, False), (501, True)])
def test_a_refusal_is_not_tried_again(stage: Stage, code: int, unserved: bool) -> None:
    stage.script.append(status(code))
    output = quick(stage).generate("hi")[0]
    assert f"answered {code}: no" in (output.error or "") and output.unserved == unserved and len(stage.seen) == 1


def test_retries_end_and_those_behind_do_not_wait_as_long(stage: Stage) -> None:
    engine = quick(stage, retries=2, workers=1)
    stage.script.extend([status(500)] * 5)
    outputs = engine.generate(["a", "b", "c", "d"])
    assert [bool(o.error) for o in outputs] == [True, True, True, False] and len(stage.seen) == 6  # 3 + 1 + 1 + 1
    stage.script.append(status(500))
    assert not engine.generate("e")[0].error  # it had answered since: the full patience again


def test_a_failed_request_leaves_the_others_alone_and_order_holds(stage: Stage) -> None:
    asked = [SamplingParams(max_tokens=13 if i % 5 == 0 else 4, seed=i) for i in range(40)]
    engine = quick(stage, workers=3)
    counted: list[int] = []
    engine.on_done = counted.append
    outputs = engine.generate([f"p{i}" for i in range(40)], asked)
    assert [o.text for o in outputs] == ["" if i % 5 == 0 else f"tiny:{i}p{i}" for i in range(40)]
    assert sum(counted) == 40 and 1 <= stage.most <= 3


def test_concurrency_is_bounded_over_threads(stage: Stage) -> None:
    def slow(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        handler.good(body)

    stage.script.extend([slow] * 12)
    engine = quick(stage, workers=2)
    threads = [threading.Thread(target=engine.generate, args=(["a"] * 4,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stage.most == 2 and len(stage.seen) == 12


def test_a_server_that_says_nothing(stage: Stage) -> None:
    gate = threading.Event()
    stage.script.append(lambda handler, body: gate.wait(20))
    outputs = quick(stage, timeout=0.1).generate(["a"])
    gate.set()
    assert "sent nothing for 0.1 s" in (outputs[0].error or "") and outputs[0].unserved and len(stage.seen) == 1


def test_a_server_that_is_not_there_is_an_error_per_output() -> None:
    outputs = RemoteEngine("http://127.0.0.1:9/v1", model="m", backoff=0.001).generate(["a", "b"])
    assert all("cannot be reached" in (o.error or "") and o.unserved for o in outputs)


SHAPES = ["<html>proxy</html>", "[1]", '{"choices": 3}', '{"object": "x"}', '{"choices": [3]}']


@pytest.mark.parametrize("answer", SHAPES)
def test_an_answer_of_another_shape(stage: Stage, answer: str) -> None:
    stage.script.append(lambda handler, body: handler.answer(answer))
    assert "answered with" in (quick(stage).generate("hi")[0].error or "")


def test_fewer_completions_than_asked(stage: Stage) -> None:
    stage.script.append(lambda handler, body: handler.answer({"choices": [{"text": "x"}]}))
    assert "1 of n=2" in (quick(stage).generate("hi", SamplingParams(n=2))[0].error or "")


def test_bad_prompts_are_refused_here(stage: Stage) -> None:
    params = [SamplingParams(), SamplingParams(prompt_logprobs=1), SamplingParams()]
    outputs = quick(stage).generate(["", "a", [{"role": "user", "content": {1}}]], params)
    assert [bool(o.error) for o in outputs] == [True] * 3 and "empty" in (outputs[0].error or "") and not stage.seen
    with pytest.raises(DataError, match="1 prompts but 2 SamplingParams"):
        quick(stage).generate(["a"], [SamplingParams()] * 2)
    for address in ("ftp://x/v1", "http://", "x", "http://[::1", "http://a:99999999/v1"):
        with pytest.raises(ConfigError, match="no http address"):
            RemoteEngine(address)


def test_a_stream_that_breaks(stage: Stage) -> None:
    def breaks(handler: Handler, body: Any) -> None:
        handler.events([{"choices": [{"delta": {"content": "a"}}]}])
        handler.close_connection = True

    def ends(handler: Handler, body: Any) -> None:
        handler.events([{"choices": [{"delta": {"content": "a"}}]}], end=True)

    def garbles(handler: Handler, body: Any) -> None:
        handler.events([{"choices": [{"delta": {"content": "a"}}]}, "data: {broken\n\n"], end=True)

    def fails(handler: Handler, body: Any) -> None:
        handler.events([{"choices": [{"delta": {"content": "a"}}]}, {"error": {"message": "out of memory"}}], end=True)

    acts = {breaks: "broke off", ends: "ended before", garbles: "no JSON object: '{broken'", fails: "out of memory"}
    for act, words in acts.items():
        stage.script.append(act)
        pieces = []
        with pytest.raises(DataError, match=words):
            for piece in quick(stage).stream([{"role": "user", "content": "yo"}]):
                pieces.append(piece.text)
        assert pieces == ["a"]
    assert len(stage.seen) == len(acts)  # what has begun is not tried again
    stage.script.extend([status(500), status(429, Retry_After="0")])
    assert "".join(p.text for p in quick(stage).stream("hi")) == "ab\u2028c"
    with pytest.raises(DataError, match="400: unlucky"):
        list(quick(stage).stream("hi", SamplingParams(max_tokens=13)))


def test_closing_a_stream_cancels_it_at_the_server(stage: Stage) -> None:
    gone = threading.Event()

    def endless(handler: Handler, body: Any) -> None:
        try:
            for _ in range(2000):
                handler.events([{"choices": [{"text": "a"}]}])
                time.sleep(0.005)
        except OSError:
            gone.set()
            raise

    stage.script.append(endless)
    pieces = quick(stage).stream("hi")
    assert next(pieces).text == "a"
    pieces.close()  # type: ignore[attr-defined]
    assert gone.wait(5)


def test_an_interrupt_does_not_wait_for_requests_in_flight(stage: Stage) -> None:
    gate = threading.Event()
    stage.script.append(lambda handler, body: handler.good(body))
    stage.script.extend([lambda handler, body: gate.wait(20)] * 2)
    engine = quick(stage, workers=2)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    engine.on_done = stop
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["a"] * 9)
    assert time.monotonic() - began < 5 and len(stage.seen) <= 3
    gate.set()


def test_the_key_is_sent_and_never_shown(stage: Stage, monkeypatch: Any, caplog: Any, capfd: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    monkeypatch.setenv("OTHER_KEY", "other-key")
    monkeypatch.delenv("NOT_SET", raising=False)
    engine = quick(stage)
    quoted = "sk-very%2Fsecret%2Bkey"
    stage.script.append(status(401, f"bad key {KEY} or {quoted}"))
    stage.script.append(lambda handler, body: handler.answer(f"<html>{KEY}</html>"))
    stage.script.append(status(400, "x" * 490 + KEY))  # the cut at 500 characters must not leave half of it
    stage.script.append(lambda handler, body: handler.events([{"error": {"message": KEY}}], end=True))
    caplog.set_level("DEBUG")
    said = [engine.generate("a")[0].error or "" for _ in range(3)]
    assert "bad key *** or ***" in said[0] and "sk-very" not in "".join(said) and quoted not in said[0]
    with pytest.raises(DataError, match=r"\*\*\*") as caught:
        list(engine.stream("a"))
    shown = [str(caught.value), repr(caught.value), repr(engine), repr(vars(engine)), repr(vars(engine._server))]
    shown += [repr(engine._server._client.headers), caplog.text, *capfd.readouterr()]
    assert not any(part in text for text in shown for part in (KEY, "sk-very", "secret"))
    assert {key for _, _, key in stage.seen} == {f"Bearer {KEY}"}
    quick(stage, api_key_env="OTHER_KEY").generate("a")
    assert stage.seen[-1][2] == "Bearer other-key"
    with pytest.raises(ConfigError, match="api_key_env=NOT_SET: the environment has no such variable"):
        quick(stage, api_key_env="NOT_SET")
    monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
    with pytest.raises(ConfigError) as refused:
        quick(stage)
    assert "two" not in str(refused.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    quick(stage).generate("a")
    assert stage.seen[-1][2] is None
    hidden = RemoteEngine(stage.url.replace("//", "//me:password@"), "tiny", backoff=0.001)
    stage.script.append(status(400))
    assert "password" not in (hidden.generate("a")[0].error or "") + repr(hidden)
