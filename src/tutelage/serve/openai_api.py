"""/v1/chat/completions, /v1/completions and /v1/models, as OpenAI's clients speak them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from tutelage.engine import Score
from tutelage.serve.access import need_key
from tutelage.serve.answers import EVENTS, ChatForm, Form, TextForm
from tutelage.serve.desk import Ask, Desk
from tutelage.serve.errors import ApiError
from tutelage.serve.limits import Limits
from tutelage.serve.proxy import Proxy
from tutelage.serve.schema import (
    ChatAnswer,
    ChatRequest,
    CompletionRequest,
    ErrorAnswer,
    ModelCard,
    ModelList,
    Sampling,
    TextAnswer,
)
from tutelage.serve.watch import PIPE, leaving

DEFAULT_TOKENS = 16
"""New tokens of /v1/completions where nothing is said, as OpenAI has it."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": words}
    for status, words in {
        400: "The request is wrong, or asks for what is not supported.", 401: "No API key, or an unknown one.",
        403: "From another origin, or not this person's.", 404: "There is no such thing here.",
        409: "There is one already.", 408: "The body did not arrive in time.",
        413: "The body is too large.", 429: "The queue is full; Retry-After says when to try again.",
        502: "The server behind this one failed.",
    }.items()
}  # fmt: skip


class Stream(Response):
    """A stream of events: one for every row and step, several steps at once for a reader that lags."""

    def __init__(self, form: Form, with_usage: bool) -> None:
        super().__init__()
        self.form, self.with_usage = form, with_usage
        self.problem: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        form, ask = self.form, self.form.ask

        async def say(body: bytes, more: bool = True) -> None:
            if body or not more:
                await send({"type": "http.response.body", "body": body, "more_body": more})

        with leaving(receive, ask.leave):
            try:
                ask.start()
                await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
                await say(form.begin())
                pipe = scope.get("extensions", {}).get(PIPE)
                ask.on_step = ask.wake if pipe is None else lambda: self._push(pipe)
                while ask.left and not ask.gone and self.problem is None:
                    await ask.news()
                    if pipe is None:
                        await say(form.news(self.with_usage))
                ask.on_step = None
                if self.problem is not None:
                    raise self.problem
                if not ask.gone:
                    await say(form.news(self.with_usage) + form.end(self.with_usage), more=False)
            except ApiError as problem:  # the status is sent already, so that the error is an event
                await say(b"data: " + problem.json + b"\n\n", more=False)
            finally:
                ask.close()

    def _push(self, pipe: Any) -> None:
        """Write what is new, if the client takes it; else it is told with the next step's, or at the end."""
        if pipe.ready:
            try:
                body = self.form.news(self.with_usage)
            except Exception as problem:  # a row failed, and the task says so
                self.problem = problem
                self.form.ask.wake()
            else:
                if body:
                    pipe.write(body)


async def whole(form: Form, request: Request) -> Response:
    """The answer in one piece; a client that goes away before it is there frees its places."""
    ask = form.ask
    with leaving(request.receive, ask.leave):
        try:
            ask.start()
            await ask.ended()
            return Response(form.whole() if not ask.gone else b"", media_type="application/json")
        finally:
            ask.close()


class Api:
    """The endpoints over some models: local ones (Desk) and such that another server has (Proxy)."""

    def __init__(self, served: Mapping[str, Desk | Proxy], best: str, limits: Limits) -> None:
        self.served, self.best, self.limits = served, best, limits

    def find(self, name: str | None) -> Desk | Proxy:
        """The model that a request names. ApiError 404 if there is none."""
        found = self.served.get(self.best if name is None else name)
        if found is None:
            words = f"there is no model {str(name)[:100]!r}; there is {', '.join(self.served)}"
            raise ApiError(404, words, "model", "model_not_found")
        return found

    def tokens(self, body: Sampling, asked: int | None, default: int) -> int:
        """Most new tokens. ApiError for more than the server allows."""
        limit = self.limits.max_tokens
        if asked is not None and asked > limit:
            raise ApiError(400, f"max_tokens: at most {limit} on this server, got {asked}", "max_tokens")
        return min(default, limit) if asked is None else asked

    def count(self, answers: int) -> None:
        """ApiError for more answers at once than the server allows."""
        if answers > self.limits.n:
            raise ApiError(400, f"n: at most {self.limits.n} answers a request on this server, got {answers}", "n")

    async def chat(self, body: ChatRequest, request: Request, size: int) -> Response:
        """One conversation, n answers."""
        model = self.find(body.model)
        self.count(body.n or 1)
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        most = self.tokens(body, asked, self.limits.max_tokens)
        if isinstance(model, Proxy):
            return await model.answer("/chat/completions", body, request)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        prompt = [message.plain() for message in body.messages]
        ask = await model.ask([prompt], body.params(most, logprobs), size)
        return await self._answer(ChatForm(ask, logprobs), body, request)

    async def complete(self, body: CompletionRequest, request: Request, size: int) -> Response:
        """Some prompts, n answers each."""
        model = self.find(body.model)
        prompts = body.prompts()
        self.count((body.n or 1) * len(prompts))
        most = self.tokens(body, body.max_tokens, DEFAULT_TOKENS)
        if isinstance(model, Proxy):
            return await model.answer("/completions", body, request)
        ask = await model.ask(prompts, body.params(most, body.logprobs), size)
        try:
            form = TextForm(ask, body.logprobs, *(await self._echo(model, prompts, ask, body) if body.echo else ()))
        except BaseException:
            ask.close()
            raise
        return await self._answer(form, body, request)

    async def _echo(
        self, model: Desk, prompts: list[str] | list[list[int]], ask: Ask, body: CompletionRequest
    ) -> tuple[list[str], list[Score] | None]:
        """The prompts as texts, and the scores of their tokens if log-probs are asked for."""
        ids = [list(group[0].prompt) for group in ask.groups]
        texts = [
            prompt if isinstance(prompt, str) else model.engine.texts.of(prompt, special=True) for prompt in prompts
        ]
        if body.logprobs is None:
            return texts, None
        scores = await model.score(ids, body.logprobs)
        for score in scores:
            if score.error:
                raise ApiError(400, score.error, "prompt")
        return texts, scores

    async def _answer(self, form: Form, body: Sampling, request: Request) -> Response:
        if body.stream:
            return Stream(form, bool(body.stream_options and body.stream_options.include_usage))
        return await whole(form, request)

    def cards(self) -> list[dict[str, Any]]:
        """What /v1/models lists."""
        return [
            {
                "id": name, "object": "model", "created": one.created, "owned_by": "tutelage",
                "max_model_len": one.engine.context_length if isinstance(one, Desk) else None,
            }
            for name, one in self.served.items()
        ]  # fmt: skip


def _documented(model: type) -> dict[int | str, dict[str, Any]]:
    """200 as JSON or, with stream=true, as events."""
    words = "A chunk of OpenAI's form as JSON, or [DONE]."
    event = {"type": "object", "properties": {"data": {"type": "string", "description": words}}, "required": ["data"]}
    return {200: {"model": model, "content": {"text/event-stream": {"schema": event}}}, **REFUSALS}


def router(api: Api, counted: Callable[[str, str, int], None]) -> APIRouter:
    """The routes under /v1. counted(endpoint, model, status) is told of every answer."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], dependencies=[Depends(need_key)])

    async def tell(endpoint: str, model: str | None, answer: Awaitable[Response]) -> Response:
        name = api.best if model is None else model
        known = name if name in api.served else "?"  # else anybody could make labels without end
        try:
            response = await answer
        except ApiError as problem:
            counted(endpoint, known, problem.status)
            raise
        counted(endpoint, known, response.status_code)
        return response

    @routes.post("/chat/completions", response_model=None, responses=_documented(ChatAnswer))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await tell("chat", body.model, api.chat(body, request, _size(request)))

    @routes.post("/completions", response_model=None, responses=_documented(TextAnswer))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        return await tell("completions", body.model, api.complete(body, request, _size(request)))

    @routes.get("/models", response_model=None, responses={200: {"model": ModelList}, 401: REFUSALS[401]})
    async def models() -> dict[str, Any]:
        """The models that can be asked."""
        return {"object": "list", "data": api.cards()}

    @routes.get(
        "/models/{name:path}", response_model=None, responses={200: {"model": ModelCard}, 401: REFUSALS[401],
                                                              404: REFUSALS[404]},
    )  # fmt: skip
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        api.find(name)
        return next(card for card in api.cards() if card["id"] == name)

    return routes


def _size(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdigit() else 1 << 30
