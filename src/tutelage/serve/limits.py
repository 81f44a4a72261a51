"""How much of everything one client may take, and the middleware that reads bodies within bounds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.serve.errors import ApiError

DRAINED = 4
"""A body that is too large is read on and dropped up to this multiple: who is still sending does not hear."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the server. A number of seconds is a longest wait."""

    body_bytes: int = 4 << 20
    """Most bytes of a request's body; more is answered 413."""
    body_seconds: float = 30.0
    """For a body to arrive; then 408."""
    header_seconds: float = 10.0
    """For a request's headers to arrive; then the connection is closed."""
    send_seconds: float = 30.0
    """For a client to take what was sent; then the connection is closed and the request's place freed."""
    seconds: float = 600.0
    """For an answer; what is there by then is sent with finish_reason "length"."""
    max_tokens: int = 32768
    """Most new tokens of an answer; a request for more is refused."""
    n: int = 128
    """Most answers of a request, over all its prompts."""
    queue: int = 512
    """Most rows that wait for a place in the batch, for each model; then 429."""
    connections: int = 2048
    """Most connections at once; then 503."""


class BodyLimit:
    """Middleware: the whole body is read before the application runs, within the limits' bytes and seconds."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as problem:
            problem.headers["Connection"] = "close"
            await problem.response()(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        most = self.limits.body_bytes
        large = ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(length) > DRAINED * most:  # digits, or the parser would not have let it through
            raise large
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    elif size > DRAINED * most:
                        raise large
        except TimeoutError:
            if size > most:
                raise large from None
            words = f"the body did not arrive within {self.limits.body_seconds:g} s"
            raise ApiError(408, words, code="body_timeout") from None
        if size > most:
            raise large
        return b"".join(parts)
