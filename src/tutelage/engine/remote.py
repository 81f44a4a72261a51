"""The same interface over any OpenAI-compatible HTTP server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tutelage.core.errors import DataError
from tutelage.engine.dialect import Dialect
from tutelage.engine.echo import EchoScorer
from tutelage.engine.requests import (
    Cloze,
    Completion,
    Output,
    Piece,
    Prompt,
    SamplingParams,
    Score,
    is_chat,
    params_for,
)
from tutelage.engine.transport import Server, ServerError

T = TypeVar("T")
R = TypeVar("R")


class RemoteEngine:
    """Client of ``base_url`` (".../v1"): messages go to /chat/completions, text and token ids to /completions.

    ``model``: the served model's name (None: the server's first one). ``workers`` requests are in flight at once. The
    API key is the environment's OPENAI_API_KEY, or what it holds under ``api_key_env``; messages never show it. A
    failed request sets its Output's ``error``; timeouts and retries are transport.Server's, to which further keywords
    go. Completions have no token ids, as servers send none; log-probs are there where the server gives them, and their
    alternatives by the tokens' texts.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        workers: int = 8,
        **server: Any,
    ) -> None:
        self.workers = workers
        self.on_done: Callable[[int], object] | None = None
        """Told of each finished prompt (1): for progress."""
        self._server = Server(base_url, api_key, timeout=timeout, workers=workers, **server)
        self._model = model
        self._scorer = EchoScorer(self._server)
        self._naming = threading.Lock()
        self._dialect = Dialect()

    def __repr__(self) -> str:
        return f"RemoteEngine({self.base_url!r}, model={self._model!r})"

    @property
    def base_url(self) -> str:
        """The server's address, without a password if it had one."""
        return self._server.shown

    @property
    def model(self) -> str:
        """The served model's name; the server's first one if none was given."""
        with self._naming:
            if self._model is None:
                self._model = self.models()[0]
            return self._model

    def models(self) -> list[str]:
        """The names of the models that the server lists. DataError when there is none."""
        listed = self._server.json("/models").get("data")
        rows = listed if isinstance(listed, list) else []
        names = [str(row["id"]) for row in rows if isinstance(row, Mapping) and row.get("id")]
        if not names:
            raise DataError(f"{self.base_url} serves no model; name one with model=")
        return names

    def close(self) -> None:
        """Close the kept connections."""
        self._server.close()

    def generate(
        self, prompts: Sequence[Prompt] | str, params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Output]:
        """One Output a prompt, in order. A request that fails has ``error`` set; the others go on."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        asked = list(zip(prompts, params_for(params, len(prompts)), strict=True))
        return _in_parallel(lambda pair: self._one(*pair), asked, self.workers, self.on_done)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Pieces of one completion as the server sends them; closing the iterator hangs up, which cancels it there.

        Raises DataError when the server refuses, breaks off, or ends without a finish reason.
        """
        path, body = self._body(prompt, params or SamplingParams())
        ended = False
        for event in self._dialect.follow(path, {**body, "stream": True, "n": 1}, self._server.events):
            for choice in _choices(event, 0, self.base_url):
                said = choice.get("delta") or choice.get("message") or {}
                text, reason = choice.get("text") or said.get("content") or "", choice.get("finish_reason")
                if text or reason:
                    yield Piece(text, (), reason)
                ended = ended or bool(reason)
        if not ended:
            raise ServerError(f"{self.base_url}{path}: the stream ended before the answer did")

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The server's own answer to a body of the API, with this model's name put in. Raises ServerError."""
        return self._dialect.ask(path, {**body, "model": self.model}, self._server.json)

    def follow(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The same as the events of a stream; closing it hangs up."""
        yield from self._dialect.follow(path, {**body, "model": self.model}, self._server.events)

    def score(self, pairs: Sequence[tuple[Any, Any]], max_tokens: int = 2048) -> list[Score]:
        """Log-probs of continuations through /completions with echo and logprobs; a server without them is an error.

        Both sides of a pair are text or both token ids. Of text, blanks at the context's end count to the continuation,
        and a token that spans the two as well. ``is_greedy`` is False where the server does not tell its first choices.
        ``max_tokens`` is the local engine's, and unused.
        """
        return _in_parallel(lambda pair: self._score(*pair), list(pairs), self.workers, self.on_done)

    def _score(self, context: Any, continuation: Any) -> Score:
        try:
            if isinstance(context, Cloze):
                raise DataError("no server scores what fills a gap in a text; load the model itself")
            return self._scorer.score(self.model, context, continuation)
        except DataError as problem:
            return Score(float("nan"), error=str(problem))

    def _one(self, prompt: Prompt, params: SamplingParams) -> Output:
        try:
            path, body = self._body(prompt, params)
            choices = _choices(self._dialect.ask(path, body, self._server.json), params.n, self.base_url)
            return Output((), tuple(_completion(choice, params.logprobs) for choice in choices[: params.n]))
        except ServerError as problem:
            return Output(error=str(problem), unserved=problem.unserved)
        except (DataError, TypeError, ValueError, KeyError, AttributeError) as problem:
            # of the last four: a prompt that is no JSON, or an answer of another shape
            return Output(error=str(problem) if isinstance(problem, DataError) else f"not usable: {problem!r}")

    def _body(self, prompt: Prompt, params: SamplingParams) -> tuple[str, dict[str, Any]]:
        """Path and JSON of a request. Servers refuse keys they do not know: only what is not the default is sent."""
        if not len(prompt):
            raise DataError("the prompt is empty")
        if params.prompt_logprobs is not None:
            raise DataError("prompt_logprobs is not served over HTTP; use score()")
        bias = {**(params.logit_bias or {}), **{token: -100.0 for token in params.banned_tokens}}
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "n": params.n,
        }
        extra = {
            "stop": list(params.stop),
            "logit_bias": {str(k): v for k, v in bias.items()},
            "top_k": params.top_k,
            "min_p": params.min_p,
            "repetition_penalty": params.repetition_penalty if params.repetition_penalty != 1.0 else None,
            "stop_token_ids": list(params.stop_tokens),
        }
        body.update({k: v for k, v in extra.items() if v})
        if params.seed is not None:
            body["seed"] = params.seed
        if is_chat(prompt):
            if params.logprobs is not None:
                body.update(logprobs=True, top_logprobs=params.logprobs)
            return "/chat/completions", {**body, "messages": list(prompt)}
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
        return "/completions", {**body, "prompt": prompt if isinstance(prompt, str) else list(prompt)}


def _choices(answer: Mapping[str, Any], least: int, url: str) -> list[Mapping[str, Any]]:
    """The "choices" of an answer, at least so many."""
    found = answer.get("choices", None if least else [])
    if not isinstance(found, list) or any(not isinstance(choice, Mapping) for choice in found):
        raise ServerError(f"{url} answered without 'choices' (keys: {', '.join(answer) or 'none'})")
    if len(found) < least:
        raise DataError(f"{url} gave {len(found)} of n={least} completions; ask for them one by one, with other seeds")
    return found


def _completion(choice: Mapping[str, Any], alternatives: int | None) -> Completion:
    text = (choice.get("message") or {}).get("content") or choice.get("text") or ""
    found = choice.get("logprobs") or {}
    top: list[Any]
    if "content" in found:  # chat
        items = found["content"] or []
        logprobs = [item["logprob"] for item in items]
        top = [[(one["token"], one["logprob"]) for one in item.get("top_logprobs") or ()] for item in items]
    else:
        logprobs = found.get("token_logprobs") or []
        top = [list((best or {}).items()) for best in found.get("top_logprobs") or ()]
    told = tuple(_likeliest(best) for best in top) if alternatives and any(top) else None
    reason = choice.get("finish_reason") or "stop"
    return Completion(text, (), tuple(float(x or 0.0) for x in logprobs), reason, told)


def _likeliest(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Best first; of tokens that look alike (parts of characters) the likeliest."""
    found: dict[str, float] = {}
    for token, logprob in sorted(pairs, key=lambda pair: -pair[1]):
        found.setdefault(token, float(logprob))
    return found


def _in_parallel(
    work: Callable[[T], R], items: Sequence[T], workers: int, on_done: Callable[[int], object] | None
) -> list[R]:
    """``work`` of each item, in order, at most ``workers`` at once.

    The threads are daemons: who is interrupted here need not wait for the requests in flight (an Executor would).
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()
    for i in range(len(items)):
        todo.put(i)

    def run() -> None:
        while not stopped.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, work(items[i]), None))
            except BaseException as problem:  # handed to the caller, who raises it
                done.put((i, None, problem))

    results: list[Any] = [None] * len(items)
    for _ in range(min(workers, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in items:
            i, results[i], problem = done.get()
            if problem is not None:
                raise problem
            if on_done:
                on_done(1)
    finally:
        stopped.set()
    return results
