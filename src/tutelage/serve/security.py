"""What a browser is told and what is believed of it: a strict content-security policy, and same-origin writes alone."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.serve.errors import ApiError

POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]
READS = ("GET", "HEAD", "OPTIONS")
LOCAL = ("localhost", "127.0.0.1", "::1")


class Security:
    """Middleware: the headers on every answer, and no state-changing request from another origin.

    local: the server is bound to this machine and asks for no keys. Then a request must also name this machine as its
    host, or any web page could reach it under a name of its own that resolves to 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        problem = refusal(scope, self.local)
        if problem is not None:
            await problem.response()(scope, receive, secured)
        else:
            await self.app(scope, receive, secured)


def refusal(scope: Scope, local: bool) -> ApiError | None:
    """Why a request's Host or origin is not acceptable, or None."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get(b"host", "")
    if local and _hostname(f"//{host}") not in LOCAL:
        words = f"the server answers to {', '.join(LOCAL)} alone, not to the host {host[:100]!r}; keys=FILE lifts this"
        return ApiError(403, words, code="host_not_allowed")
    if scope["method"] in READS:
        return None
    origin = headers.get(b"origin")
    foreign = headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none")
    if foreign or (origin is not None and _netloc(origin) != host.lower()):
        return ApiError(403, "a page of another origin may not do this", code="cross_origin")
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
