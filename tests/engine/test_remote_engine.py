"""The HTTP client against a small server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tutelage.engine import RemoteEngine, SamplingParams, load


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("max_tokens") == 13:
            self.send_error(400, "unlucky")
            return
        if body.get("stream"):
            lines = [{"choices": [{"text": t, "finish_reason": None}]} for t in ("a", "b")]
            lines.append({"choices": [{"text": "", "finish_reason": "stop"}]})
            data = "".join(f"data: {json.dumps(x)}\n\n" for x in lines) + "data: [DONE]\n\n"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data.encode())
            return
        said = f"{body['model']}:{body.get('seed')}"
        if self.path.endswith("/chat/completions"):
            choice = {"message": {"content": said + body["messages"][-1]["content"]}, "finish_reason": "stop"}
        else:
            choice = {"text": f"{said}{body['prompt']}", "finish_reason": "length"}
        self._send({"choices": [choice] * body["n"]})

    def _send(self, answer: dict) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_text_chat_errors_and_streams(url: str) -> None:
    engine = load(url)
    assert isinstance(engine, RemoteEngine)
    each = [SamplingParams(n=2, seed=0), SamplingParams(), SamplingParams(max_tokens=13)]
    outputs = engine.generate(["hi", [{"role": "user", "content": "yo"}], "x"], each)
    assert [c.text for c in outputs[0].completions] == ["tiny:0hi"] * 2
    assert outputs[1].text == "tiny:Noneyo"
    assert "400" in (outputs[2].error or "")
    pieces = list(engine.stream("hi"))
    assert "".join(p.text for p in pieces) == "ab" and pieces[-1].finish_reason == "stop"


def test_a_server_that_is_not_there_is_an_error_per_output() -> None:
    assert "reached" in (RemoteEngine("http://127.0.0.1:9/v1", model="m").generate(["a"])[0].error or "")
