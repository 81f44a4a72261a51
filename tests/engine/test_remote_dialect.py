"""Servers that want a request said otherwise, and what they tell beside the text."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.test_remote_engine import Handler, Stage, quick, status
from tests.servers import serving
from tutelage.core.errors import DataError
from tutelage.engine import RemoteEngine, SamplingParams, transport


@pytest.fixture
def stage() -> Iterator[Stage]:
    server = Stage()
    with serving(server):
        yield server


def reasoning(handler: Handler, body: dict[str, Any]) -> None:
    """Refuses what OpenAI's reasoning models refuse, in their words."""
    if "max_tokens" in body:
        words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
    elif "top_p" in body:
        words = "Unsupported parameter: 'top_p' is not supported with this model."
    elif body["temperature"] != 1:
        words = "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default (1) is."
    else:
        handler.good(body)
        return
    handler.answer({"error": {"message": words, "type": "invalid_request_error"}}, 400)


def test_a_server_that_calls_max_tokens_otherwise(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "play", reasoning)
    engine, turn = quick(stage, workers=3), [{"role": "user", "content": "yo"}]
    assert engine.generate([turn], SamplingParams(max_tokens=7))[0].text == "tiny:Noneyo"
    sent = [set(body) for _, body, _ in stage.seen]
    common = {"model", "messages", "temperature", "n"}
    assert sent == [common | {"max_tokens", "top_p"}, common | {"max_completion_tokens", "top_p"},
                    common | {"max_completion_tokens"}]  # fmt: skip
    assert stage.seen[-1][1]["max_completion_tokens"] == 7
    stage.seen.clear()
    outputs = engine.generate([turn] * 5)
    assert all(o.text for o in outputs) and len(stage.seen) == 5  # it is known by now
    stage.seen.clear()
    asked = engine.generate([turn, turn], [SamplingParams(temperature=0.5), SamplingParams(top_p=0.9)])
    assert "does not support 0.5" in (asked[0].error or "")  # what was asked for is never left out
    assert "'top_p' is not supported" in (asked[1].error or "") and len(stage.seen) == 2
    assert not any(o.unserved for o in asked)
    fresh = quick(stage, workers=4)  # several find out at once
    assert all(o.text for o in fresh.generate([turn] * 8))
    stage.seen.clear()
    fresh.generate(["plain"])
    assert "max_tokens" in stage.seen[0][1]  # another path has words of its own


def test_a_stream_says_it_the_servers_way_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "play", reasoning)
    turn = [{"role": "user", "content": "yo"}]
    pieces = list(quick(stage).stream(turn))
    assert "".join(p.text for p in pieces) == "ab\u2028c" and len(stage.seen) == 3
    with pytest.raises(DataError, match="does not support 0.5"):
        list(quick(stage).stream(turn, SamplingParams(temperature=0.5)))


def test_a_length_that_is_too_much_is_an_error_and_nothing_else(stage: Stage) -> None:
    words = "'max_tokens' or 'max_completion_tokens' is too large: 9999. The context length is 4096."
    stage.script.append(status(400, words))
    engine = quick(stage)
    assert "too large" in (engine.generate("a", SamplingParams(max_tokens=9999))[0].error or "")
    assert len(stage.seen) == 1
    engine.generate("a")
    assert "max_tokens" in stage.seen[-1][1]


def test_alternatives_come_by_their_texts(stage: Stage) -> None:
    best = [{"token": " a", "logprob": -0.1, "bytes": [32, 97]}, {"token": " b", "logprob": -2.5, "bytes": [32, 98]}]
    alike = [{"token": "\ufffd", "logprob": -3.0}, {"token": "\ufffd", "logprob": -1.0}]
    content = [{"logprob": -0.1, "top_logprobs": best}, {"logprob": -1, "top_logprobs": alike}]
    chat = {"choices": [{"message": {"content": " ax"}, "logprobs": {"content": content}, "finish_reason": "stop"}]}
    found = {"tokens": [" a", "x"], "token_logprobs": [-0.1, -1.0], "top_logprobs": [{" b": -2.5, " a": -0.1}, None]}
    text = {"choices": [{"text": " ax", "logprobs": found, "finish_reason": "length"}]}
    engine, turn = quick(stage, workers=1), [{"role": "user", "content": "yo"}]
    for prompt, answer, asked in ((turn, chat, "top_logprobs"), ("yo", text, "logprobs")):
        stage.script.append(lambda handler, body, answer=answer: handler.answer(answer))
        made = engine.generate([prompt], SamplingParams(logprobs=2))[0].completions[0]
        assert stage.seen[-1][1][asked] == 2 and made.logprobs == (-0.1, -1.0) and made.top_logprobs is not None
        assert list(made.top_logprobs[0].items()) == [(" a", -0.1), (" b", -2.5)]
        assert made.top_logprobs[1] == ({"\ufffd": -1.0} if prompt is turn else {})
        stage.script.append(lambda handler, body, answer=answer: handler.answer(answer))
        assert engine.generate([prompt])[0].completions[0].top_logprobs is None  # not asked for
        assert engine.generate([prompt], SamplingParams(logprobs=2))[0].completions[0].top_logprobs is None  # not given
    odd = {"choices": [{"text": "x", "logprobs": {"top_logprobs": [3]}}]}
    stage.script.append(lambda handler, body: handler.answer(odd))
    assert "not usable" in (engine.generate("a", SamplingParams(logprobs=2))[0].error or "")


def half(handler: Handler, body: dict[str, Any]) -> None:
    """Half of what was promised, then gone."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def test_half_an_answer_is_asked_for_again(stage: Stage) -> None:
    stage.script.extend([half, half])
    assert quick(stage).generate("hi")[0].text == "tiny:Nonehi" and len(stage.seen) == 3
    stage.script.extend([half] * 3)
    output = quick(stage, retries=2).generate("hi")[0]
    assert "broke off" in (output.error or "") and output.unserved and len(stage.seen) == 6


def test_waits_double_with_jitter_up_to_a_limit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", waits.append)
    engine = quick(stage, backoff=0.5, retries=9, workers=1)
    for _ in range(8):
        stage.script.extend([status(503)] * 9)
        assert not engine.generate("hi")[0].error
    for tried in range(9):
        most = min(0.5 * 2**tried, 30.0)
        found = waits[tried::9]
        assert all(most / 2 <= wait <= most for wait in found) and len(set(found)) > 4


def test_connecting_has_a_limit_of_its_own() -> None:
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    waiting = [socket.socket() for _ in range(4)]
    for one in waiting:  # the queue is full: a further connection is not accepted
        one.setblocking(False)
        one.connect_ex(full.getsockname())
    engine = RemoteEngine(f"http://127.0.0.1:{full.getsockname()[1]}/v1", "m", connect_timeout=0.2, retries=0)
    began = time.monotonic()
    output = engine.generate("hi")[0]
    assert "cannot be reached" in (output.error or "") and output.unserved and time.monotonic() - began < 5
    for one in (*waiting, full):
        one.close()
