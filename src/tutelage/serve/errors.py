"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tutelage.core.errors import TutelageError

log = logging.getLogger("tutelage")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused, and how the answer says so."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def json(self) -> bytes:
        """The same as bytes; ASCII, as a text may hold half a surrogate pair, which has no UTF-8."""
        return json.dumps(self.body).encode("ascii")

    def response(self) -> Response:
        """The same as an answer."""
        return Response(self.json, self.status, self.headers, media_type="application/json")


def too_busy(what: str, seconds: float = 1.0) -> ApiError:
    """429: try again later."""
    return ApiError(429, what, code="queue_full", headers={"Retry-After": str(max(1, round(seconds)))})


def _invalid(problem: RequestValidationError) -> ApiError:
    issue = problem.errors()[0]
    place = [str(part) for part in issue["loc"] if part != "body"]
    words = str(issue["msg"]).removeprefix("Value error, ")
    if issue["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {issue.get('ctx', {}).get('error', words)}", code="json_invalid")
    param = ".".join(place) or None
    if issue["type"] == "extra_forbidden":
        return ApiError(400, f"unrecognized request argument: {param}", param, "unknown_parameter")
    return ApiError(400, f"{param}: {words}" if param else f"the body: {words}", param, "invalid_value")


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that the document has for a path."""
    for template, operations in app.openapi()["paths"].items():
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path):
            return sorted(method.upper() for method in operations)
    return []


def install(app: FastAPI) -> None:
    """Every error of the application in this form."""

    @app.exception_handler(ApiError)
    async def _api(_: Request, problem: ApiError) -> Response:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, problem: RequestValidationError) -> Response:
        return _invalid(problem).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, problem: HTTPException) -> Response:
        words, headers = problem.detail or HTTPStatus(problem.status_code).phrase, dict(problem.headers or {})
        if problem.status_code == 405 and (allowed := _methods(app, request.url.path)):
            headers["Allow"] = ", ".join(allowed)  # of every route of this path; Starlette names the first one's
        return ApiError(problem.status_code, str(words), headers=headers).response()

    @app.exception_handler(TutelageError)
    async def _ours(_: Request, problem: TutelageError) -> Response:
        return ApiError(400, str(problem)).response()

    @app.exception_handler(Exception)
    async def _any(_: Request, problem: Exception) -> Response:
        # what went wrong is in the log; the answer shows nothing of the program's inside
        return ApiError(500, "the server failed at this request; its log says why").response()
