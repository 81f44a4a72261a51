"""A tiny chat model, and a real server over it on a free port."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
import torch

from tutelage.engine import LocalEngine
from tutelage.model.hub import create_model
from tutelage.serve.app import create_app
from tutelage.serve.limits import Limits
from tutelage.serve.run import bound, make_server
from tutelage.text.chat import ensure_chat
from tutelage.text.tokenizer import ensure_pad, train_tokenizer

TEXTS = ["one two three four", "the cat sat on the mat", "你好，世界", "naïve café déjà vu"] * 9
CHAT = [{"role": "user", "content": "one two"}]


class Running:
    """A server in a thread of this process."""

    def __init__(self, app: Any, limits: Limits, stop_seconds: float = 10.0) -> None:
        self.app = app
        listening = bound("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = make_server(app, limits, "127.0.0.1", self.port, stop_seconds)
        self.thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    @property
    def desk(self) -> Any:
        return next(iter(self.app.state.served.values()))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """What the server answers to these bytes until it closes the connection or says nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as link:
            link.sendall(data)
            got = b""
            try:
                while part := link.recv(65536):
                    got += part
            except (TimeoutError, ConnectionResetError):
                pass
            return got

    def metric(self, name: str) -> float:
        """A metric's value, summed over its labels."""
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        found = [line for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "not in time"
        time.sleep(0.005)


@contextmanager
def running(models: Any, limits: Limits | None = None, **more: Any) -> Iterator[Running]:
    limits = limits or Limits()
    one = Running(create_app(models, limits=limits, **more), limits)
    try:
        yield one
    finally:
        one.stop()


def make_engine(**more: Any) -> LocalEngine:
    tokenizer = train_tokenizer(TEXTS, 400)
    ensure_pad(tokenizer)
    ensure_chat(tokenizer)
    torch.manual_seed(0)
    return LocalEngine(create_model("laptop-0.3m", tokenizer, 256).eval(), tokenizer, **more)


@pytest.fixture(scope="session")
def engine() -> LocalEngine:
    return make_engine()


@pytest.fixture(scope="session")
def server(engine: LocalEngine) -> Iterator[Running]:
    with running({"tiny": engine}) as one:
        yield one


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Running, path: str, body: Any, **more: Any) -> httpx2.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **more.pop("headers", {})}
    return httpx2.post(f"{server.url}{path}", content=data, headers=headers, timeout=60, **more)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, one for all tests; where there is none, a test of a page is skipped and says so."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on this machine: the pages are not tried")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()
