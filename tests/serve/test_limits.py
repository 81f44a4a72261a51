"""What a client may do and what happens when it goes away, is slow, or is one too many."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import CHAT, Running, make_engine, post, running, until
from tutelage.engine import LocalEngine
from tutelage.serve.limits import Limits

LONG = {"model": "tiny", "prompt": "the cat", "max_tokens": 240, "logit_bias": {str(i): -100 for i in range(6)}}


def bytes_of(server: Running, path: str, body: Any, more: str = "") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Slow:
    """Within: each step of the engine takes longer, so that there is time to look at it."""

    def __init__(self, engine: LocalEngine, seconds: float) -> None:
        self.scheduler, self.seconds = engine._scheduler, seconds

    def __enter__(self) -> None:
        step = self.scheduler.step
        self.scheduler.step = lambda: (time.sleep(self.seconds), step())  # type: ignore[method-assign]

    def __exit__(self, *_: Any) -> None:
        del self.scheduler.step


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(server: Running, engine: LocalEngine, stream: bool) -> None:
    cancelled = server.metric("tutelage_cancelled_requests_total")
    with Slow(engine, 0.01), socket.create_connection(("127.0.0.1", server.port)) as link:
        link.sendall(bytes_of(server, "/v1/completions", {**LONG, "n": 3, "stream": stream}))
        until(lambda: len(server.desk.asks) == 1 and server.metric("tutelage_running_rows") == 3)
        if stream:
            link.recv(1000)
        link.close()
        until(lambda: not server.desk.asks, 2)  # 240 steps would take longer
        until(lambda: not engine._scheduler.cohorts, 2)
    assert server.metric("tutelage_cancelled_requests_total") == cancelled + 1
    assert engine._scheduler.used() == 0


def test_leaving_rows_do_not_disturb_the_others(server: Running, engine: LocalEngine) -> None:
    """Twenty streams with one beginning, half of which go away in the middle."""
    body = {**LONG, "prompt": "one two three four " * 6, "temperature": 0, "max_tokens": 60}
    expected = post(server, "/v1/completions", body).json()["choices"][0]["text"]
    found: list[str] = []

    def stay() -> None:
        found.append(post(server, "/v1/completions", {**body, "n": 2}).json()["choices"][1]["text"])

    def leave() -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as link:
            link.sendall(bytes_of(server, "/v1/completions", {**body, "stream": True}))
            link.recv(2000)

    threads = [threading.Thread(target=stay if i % 2 else leave) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 10
    until(lambda: not server.desk.asks)
    assert engine._scheduler.used() == 0


def test_a_full_queue_is_429_with_retry_after() -> None:
    engine = make_engine(max_rows=2)
    with running({"tiny": engine}, Limits(queue=1)) as server, Slow(engine, 0.02):
        links = []
        for _ in range(3):
            links.append(socket.create_connection(("127.0.0.1", server.port)))
            links[-1].sendall(bytes_of(server, "/v1/completions", {**LONG, "stream": True}))
        until(lambda: len(server.desk.asks) == 3)
        gauges = ("tutelage_running_rows", "tutelage_waiting_rows")
        until(lambda: [server.metric(name) for name in gauges] == [2, 1])
        refused = post(server, "/v1/completions", LONG)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        never = post(server, "/v1/completions", {**LONG, "n": 4})
        assert never.status_code == 400 and "4 answers are more" in never.json()["error"]["message"]
        links[0].close()
        until(lambda: len(server.desk.asks) == 2)
        assert post(server, "/v1/completions", {**LONG, "max_tokens": 1}).status_code == 200
        for link in links:
            link.close()


def test_a_body_that_is_too_large_or_never_comes() -> None:
    limits = Limits(body_bytes=2000, body_seconds=0.4, header_seconds=0.4)
    with running({"tiny": make_engine()}, limits) as server:
        for size in (2001, 7000, 10**6):  # read on, read on and dropped, refused at once
            found = server.raw(bytes_of(server, "/v1/completions", {"prompt": "x" * size}))
            assert b" 413 " in found[:20] and b"body_too_large" in found
        chunked = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert b" 413 " in server.raw(chunked + b"2000\r\n" + b"x" * 0x2000 + b"\r\n")[:20]
        late = bytes_of(server, "/v1/completions", LONG)[:-5]
        assert b" 408 " in server.raw(late)[:20]
        began = time.time()
        assert server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: loc") == b""  # headers that do not end
        assert server.raw(b"") == b"" and time.time() - began < 5
        kept = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert server.raw(kept + b"GET /hea").count(b"HTTP/1.1 200") == 1
        assert b" 400 " in server.raw(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"b" * 70000)[:20]
        assert post(server, "/v1/completions", {**LONG, "max_tokens": 2}).status_code == 200


def test_a_reader_that_takes_nothing_is_let_go() -> None:
    engine = make_engine()
    with running({"tiny": engine}, Limits(send_seconds=0.5)) as server:
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect(("127.0.0.1", server.port))
            # answers larger than all buffers between the two
            body = {**LONG, "n": 100, "logprobs": 20, "stream": True}
            link.sendall(bytes_of(server, "/v1/completions", body))
            until(lambda: server.desk.asks)
            until(lambda: not server.desk.asks and not engine._scheduler.cohorts, 30)
            until(lambda: not server.server.server_state.connections, 5)
        assert post(server, "/v1/completions", {**LONG, "max_tokens": 2}).status_code == 200


def test_an_answer_that_takes_too_long_is_cut() -> None:
    engine = make_engine()
    with running({"tiny": engine}, Limits(seconds=0.5)) as server, Slow(engine, 0.02):
        for stream in (False, True):
            began = time.time()
            found = post(server, "/v1/completions", {**LONG, "stream": stream})
            assert time.time() - began < 3 and found.status_code == 200
            assert '"finish_reason":"length"' in found.text.replace(": ", ":")
        assert found.text.endswith("data: [DONE]\n\n")
    assert engine._scheduler.used() == 0


def test_a_stop_finishes_what_runs() -> None:
    engine = make_engine()
    with running({"tiny": engine}) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as link, Slow(engine, 0.005):
            link.sendall(bytes_of(server, "/v1/completions", {**LONG, "stream": True}))
            until(lambda: engine._scheduler.cohorts)
            server.server.handle_exit(15, None)
            until(lambda: not _accepts(server))
            found = b""
            while part := link.recv(65536):
                found += part
        assert found.count(b"data: {") > 10 and b"[DONE]" in found and b'"finish_reason":"length"' in found
        server.thread.join(10)
        assert not server.thread.is_alive()


def _accepts(server: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        return True
    except OSError:
        return False


def test_the_process_stops_gracefully(command: Any, tmp_path: Any) -> None:
    from tutelage.model.hub import save_model

    engine = make_engine()
    save_model(engine.model, engine.tokenizer, tmp_path / "tiny")
    process = command("serve", tmp_path / "tiny", "port=0")
    process.says("Ctrl-C stops")
    url = process.text().split("serving tiny at ")[1].split()[0]
    assert httpx2.get(f"{url}/health").json() == {"status": "ok", "models": ["tiny"]}
    body = {**LONG, "n": 20, "stream": True}
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        parts = answer.iter_text()
        got = next(parts)
        process.send(15)
        got += "".join(parts)
    assert got.endswith("data: [DONE]\n\n") and got.count('"finish_reason":"') == 20
    assert process.wait(20) == 0 and "stopped" in process.text()


def test_chat_is_there_too(server: Running) -> None:
    found = post(server, "/v1/chat/completions", {"messages": CHAT, "max_tokens": 3})
    assert found.status_code == 200 and found.json()["model"] == "tiny"
