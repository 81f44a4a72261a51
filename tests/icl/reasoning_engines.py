"""Engines for the tests of reasoning: one that a function plays, and one behind a small server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

from tests.servers import JsonHandler, serving
from tutelage.engine import Completion, Output, RemoteEngine, SamplingParams
from tutelage.engine.requests import params_for


class Scripted:
    """``say(prompt as text, sample number)`` gives the completion; stop strings are obeyed. Words are its tokens."""

    def __init__(self, say: Callable[[str, int], str], logprobs: bool = True) -> None:
        self.say, self.logprobs = say, logprobs
        self.calls: list[list[Any]] = []
        self.params: list[SamplingParams] = []

    def generate(self, prompts: Sequence[Any], params: Any = None) -> list[Output]:
        each = params_for(params, len(prompts))
        self.calls.append(list(prompts))
        self.params += each
        return [self._one(prompt, p) for prompt, p in zip(prompts, each, strict=True)]

    def _one(self, prompt: Any, params: SamplingParams) -> Output:
        text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        said = []
        for j in range(params.n):
            whole = self.say(text, j)
            if whole == "REFUSED":
                return Output(error="refused")
            cut = min((whole.find(s) for s in params.stop if s in whole), default=len(whole))
            words = tuple(range(len(whole[:cut].split())))
            logs = tuple(-0.1 * (j + 1) for _ in words) if self.logprobs else ()
            said.append(Completion(whole[:cut], words if self.logprobs else (), logs, "stop"))
        return Output(tuple(range(len(text.split()))) if self.logprobs else (), tuple(said))


class _Handler(JsonHandler):
    """Answers /completions and /chat/completions with the server's engine."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "served"}]})

    def do_POST(self) -> None:
        body = self.body()
        chat = self.path.endswith("/chat/completions")
        taken = {k: body[k] for k in ("max_tokens", "temperature", "top_k", "n", "stop", "seed") if k in body}
        output = self.server.engine.generate([body["messages" if chat else "prompt"]], SamplingParams(**taken))[0]
        if output.error is not None:
            self.answer({"error": {"message": output.error}}, 400)
            return
        self.answer({"choices": [self._choice(c, chat, body.get("logprobs")) for c in output.completions]})

    def _choice(self, said: Completion, chat: bool, logprobs: Any) -> dict[str, Any]:
        shown: dict[str, Any] = {"message": {"content": said.text}} if chat else {"text": said.text}
        if logprobs is not None and self.server.logprobs:
            listed = [{"token": "", "logprob": x} for x in said.logprobs]
            shown["logprobs"] = {"content": listed} if chat else {"token_logprobs": list(said.logprobs)}
        return {**shown, "finish_reason": "length" if said.finish_reason == "length" else "stop"}


@contextmanager
def served(engine: Any, logprobs: bool = True) -> Iterator[RemoteEngine]:
    """Within: a client of a small server on this engine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.engine, server.logprobs = engine, logprobs  # type: ignore[attr-defined]
    with serving(server) as url:
        client = RemoteEngine(url)
        yield client
        client.close()
