"""Who may ask: API keys for programs, and the session cookie by which a person is known on the pages."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from tutelage.core.atomic import write_atomic
from tutelage.core.errors import DataError
from tutelage.serve.errors import ApiError

if TYPE_CHECKING:
    from tutelage.feedback.store import Person

COOKIE = "tutelage_key"
PREFIX = "sk-tutelage-"
COOKIE_SECONDS = 400 * 24 * 3600
"""The longest that browsers keep a cookie."""


def _hash(key: str) -> str:
    """SHA-256, unsalted and fast: a key has 256 random bits, so that nothing can be guessed or looked up."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class Keys:
    """API keys, of which the file holds hashes only: {"keys": [{"name", "sha256", "created"}]}.

    Read again when the file changes, so that a key added or removed counts at once.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known: dict[str, str] = {}
        self._stamp: Any = None
        self._refresh()

    def _refresh(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file; make a key with new_key=NAME") from None
        if (stamp := (stat.st_mtime_ns, stat.st_size, stat.st_ino)) != self._stamp:
            self._known = {row["sha256"]: row["name"] for row in _rows(self.path)}
            self._stamp = stamp

    def name_of(self, key: str) -> str | None:
        """Whose key it is, or None."""
        try:
            self._refresh()
        except DataError:  # half written, or removed: what was known holds until it can be read
            pass
        return self._known.get(_hash(key))

    @staticmethod
    def add(path: str | Path, name: str) -> str:
        """Add a key to the file (made if it is not there) and return it; it cannot be read again."""
        path = Path(path)
        rows = _rows(path) if path.exists() else []
        if any(row["name"] == name for row in rows):
            raise DataError(f"{path}: has a key of the name {name!r}; choose another, or remove that line first")
        key = PREFIX + secrets.token_urlsafe(32)
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        rows.append({"name": name, "sha256": _hash(key), "created": created})
        write_atomic(path, json.dumps({"keys": rows}, indent=1, ensure_ascii=False) + "\n")
        return key


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
        return [{key: str(row[key]) for key in ("name", "sha256", "created")} for row in rows]
    except (ValueError, KeyError, TypeError) as problem:
        expected = '{"keys": [{"name", "sha256", "created"}]}'
        raise DataError(f"{path}: no key file ({problem!r}); expected {expected}") from None


def _bearer(request: Request) -> str | None:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() or None if kind.lower() == "bearer" else None


def person(request: Request) -> Person | None:
    """The person whose key the session cookie holds; None without a store, without a cookie, or with an unknown key."""
    store, key = request.app.state.store, request.cookies.get(COOKIE)
    return store.person_of(key) if store is not None and key else None


def require_person(request: Request) -> Person:
    """The person, or 401."""
    found = person(request)
    if found is None:
        raise ApiError(401, "open the page with your key: /label?key=...", code="no_person")
    return found


def require_key(request: Request) -> None:
    """401 unless the request has an API key or a person's cookie; nothing is asked where the server has no keys."""
    keys: Keys | None = request.app.state.keys
    if keys is None:
        return
    key = _bearer(request)
    if key is not None and keys.name_of(key) is not None:
        return
    if key is None and person(request) is not None:
        return
    words = "the API key is not known" if key else "an API key is needed: the header Authorization: Bearer KEY"
    raise ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


async def need_key(request: Request) -> None:
    """``require_key`` in the event loop; only a cookie is looked up in another thread, as the store is on a disk."""
    if request.app.state.keys is not None:
        if COOKIE in request.cookies:
            await run_in_threadpool(require_key, request)
        else:
            require_key(request)


def remember(response: Response, key: str, secure: bool = False) -> None:
    """Set a person's session cookie."""
    response.set_cookie(
        COOKIE, key, max_age=COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure, path="/"
    )  # fmt: skip
