"""HTTP to an OpenAI-compatible server: timeouts, retries, bounded concurrency, and a key that is never shown."""

from __future__ import annotations

import email.utils
import itertools
import json
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2

from tutelage.core.errors import ConfigError, DataError

T = TypeVar("T")
LONGEST_BACKOFF = 30.0
"""Seconds that a wait between two tries grows to."""
SHOWN = 500
"""Characters of a server's words that an error message repeats."""
OF_THE_REQUEST = (400, 413, 422)
"""Statuses that blame this one request; any other says that the next request would fail as well."""


class ServerError(DataError):
    """A request that the server refused, or that did not reach it.

    `status`: of the answer, None where there was none. `unserved`: the fault is not this request's, so the same one may
    succeed later. `retry`: worth another try by itself, after `wait` seconds if the server said so.
    """

    def __init__(self, words: str, status: int | None = None, retry: bool = False, wait: float | None = None) -> None:
        super().__init__(words)
        self.status, self.retry, self.wait = status, retry, wait
        self.unserved = status not in OF_THE_REQUEST


class Server:
    """Client of one server. Safe to call from several threads; at most `workers` of their requests are in flight.

    `timeout`: seconds without a byte before a request is given up; `connect_timeout`: to reach the server. 429, 5xx and
    lost connections are tried again up to `retries` times, after what Retry-After says (at most `longest_wait`
    seconds), else after `backoff` seconds doubled each time, with jitter. The key is `api_key`, else what the
    environment holds under `api_key_env` (OPENAI_API_KEY if not named).
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
        workers: int = 8,
        retries: int = 4,
        backoff: float = 0.5,
        longest_wait: float = 120.0,
    ) -> None:
        if workers < 1 or retries < 0:
            raise ConfigError(f"workers={workers}, retries={retries}: expected at least 1 and 0")
        key = _key(api_key, api_key_env)
        self.url, self.shown = _address(base_url)
        self.timeout, self.retries, self.backoff, self.longest_wait = timeout, retries, backoff, longest_wait
        self._slots = threading.BoundedSemaphore(workers)
        self._random = random.Random()  # not the global one, which belongs to the caller
        self._down = False
        self._hide = _hider(key)
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout, connect=connect_timeout, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=workers),
        )

    def __repr__(self) -> str:
        return f"Server({self.shown!r})"

    def close(self) -> None:
        """Close the kept connections."""
        self._client.close()

    def json(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a POST of `body` (None: to a GET). Raises ServerError."""

        def once() -> dict[str, Any]:
            with self._slots, self._failures(path):
                response = self._open(path, body)
                try:
                    text = response.read().decode("utf-8", "replace")
                finally:
                    response.close()
            return self._object(path, text)

        return self._retrying(once)

    def events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a streamed answer, until "[DONE]" or its end. Closing the iterator hangs up.

        Raises ServerError; only what fails before the first byte is tried again.
        """

        def once() -> httpx2.Response:
            with self._failures(path):
                return self._open(path, body)

        response = self._retrying(once)
        try:
            with self._failures(path):
                for line in _lines(response.iter_bytes()):
                    data = line.removeprefix("data:").strip()
                    if data == "[DONE]":
                        return
                    if line.startswith(("data:", "{")) and data:
                        yield self._object(path, data)
        finally:
            response.close()

    def _open(self, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        if body is None:
            request = self._client.build_request("GET", self.url + path)
        else:  # escaped to ASCII: half a surrogate pair has no UTF-8
            data, kind = json.dumps(body).encode("ascii"), {"Content-Type": "application/json"}
            request = self._client.build_request("POST", self.url + path, content=data, headers=kind)
        response = self._client.send(request, stream=True)
        if response.is_success:
            return response
        try:
            said = self._words(response.read().decode("utf-8", "replace"))
        finally:
            response.close()
        status = response.status_code
        hint = "; the address of an OpenAI-compatible server mostly ends in /v1" if status == 404 else ""
        retry = status == 429 or (status >= 500 and status != 501)
        words = f"{self.shown}{path} answered {status}: {said}{hint}"
        raise ServerError(words, status, retry, _retry_after(response.headers.get("retry-after")))

    def _object(self, path: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ServerError(f"{self.shown}{path} answered with no JSON object: {self._words(text)!r}")
        if found.get("error"):
            raise ServerError(f"{self.shown}{path} answered with an error: {self._words(text)}")
        return found

    def _words(self, text: str) -> str:
        """A server's own words for an error message: its "message" if there is one, cut short, without the key."""
        try:
            error = json.loads(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            pass
        return " ".join(self._hide(text).split())[:SHOWN]  # hidden first: half a key is a secret too

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        """Context in which the client library's errors become ServerErrors."""
        try:
            yield
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            # perhaps it is still at work on it: a second copy would only slow it down
            words = f"{self.shown}{path} sent nothing for {self.timeout:g} s; give a longer timeout"
            raise ServerError(words) from None
        except httpx2.TransportError as problem:
            words = self._hide(str(problem)) or type(problem).__name__
            unreached = isinstance(problem, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError)
            what = "cannot be reached" if unreached else "broke off"
            raise ServerError(f"{self.shown}{path} {what}: {words}", retry=True) from None
        except httpx2.HTTPError as problem:
            raise ServerError(f"{self.shown}{path}: {self._hide(str(problem))}") from None

    def _retrying(self, once: Callable[[], T]) -> T:
        for tried in itertools.count(1):
            try:
                found = once()
                self._down = False
                return found
            except ServerError as problem:
                if not problem.retry:
                    self._down = self._down and problem.status is None
                    raise
                # after one request has failed to the end, the many behind it need not all wait as long
                if self._down or tried > self.retries:
                    self._down = True
                    raise
                wait = problem.wait
                if wait is None:
                    wait = min(self.backoff * 2 ** (tried - 1), LONGEST_BACKOFF) * self._random.uniform(0.5, 1.0)
                elif wait > self.longest_wait:
                    raise ServerError(f"{problem} (asks to wait {wait:.0f} s)", problem.status) from None
                time.sleep(wait)
        raise AssertionError


def _key(given: str | None, name: str | None) -> str | None:
    key = given if given is not None else os.environ.get(name or "OPENAI_API_KEY")
    if name and given is None and key is None:
        raise ConfigError(f"api_key_env={name}: the environment has no such variable")
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the API key (of {name or 'OPENAI_API_KEY'}) has characters that no HTTP header may hold")
    return key or None


def _hider(key: str | None) -> Callable[[str], str]:
    """A function that puts "***" for the key, however it is written, in a text. It alone knows the key."""
    if not key:
        return lambda text: text
    forms = sorted({key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]}, key=len, reverse=True)

    def hide(text: str) -> str:
        for form in forms:
            text = text.replace(form, "***")
        return text

    return hide


def _address(base_url: str) -> tuple[str, str]:
    """The address, and how messages show it: without a password."""
    url = base_url.rstrip("/")
    shown = re.sub(r"//[^/]*@", "//", url)
    try:
        parts = httpx2.URL(url)
        fine = parts.scheme in ("http", "https") and bool(parts.host) and (parts.port or 1) < 1 << 16
    except (httpx2.InvalidURL, ValueError):
        fine = False
    if not fine:
        raise ConfigError(f"{shown!r} is no http address; expected one such as http://127.0.0.1:8000/v1")
    return url, shown


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header (a number or a date) asks to wait; None for none, or one that says nothing."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a byte stream. Cut at newlines alone: a model's text may hold U+2028, which str.splitlines cuts at."""
    left = b""
    for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").strip()
    yield left.decode("utf-8", "replace").strip()
