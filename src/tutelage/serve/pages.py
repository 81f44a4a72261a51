"""The pages: static files of the package, read once, so that no request ever names a path of the disk."""

from __future__ import annotations

import hashlib
import mimetypes
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tutelage.serve.access import remember
from tutelage.serve.errors import ApiError

PAGES = {"/": "index.html", "/label": "label.html", "/label/report": "report.html", "/chat": "chat.html"}
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


def _walk(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for item in folder.iterdir():
        if item.is_dir():
            found.update(_walk(item, f"{prefix}{item.name}/"))
        elif not item.name.startswith((".", "_")):
            found[prefix + item.name] = item.read_bytes()
    return found


def _kind(name: str) -> str:
    suffix = name[name.rfind(".") :]
    kind = TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Files:
    """The files under serve/static by name, with their types and tags."""

    def __init__(self) -> None:
        folder = resources.files("tutelage.serve") / "static"
        self._files = _walk(folder) if folder.is_dir() else {}
        self._tags = {name: f'"{hashlib.sha256(data).hexdigest()[:20]}"' for name, data in self._files.items()}

    def response(self, name: str, request: Request) -> Response:
        """The file, or 304 where the browser has it; ApiError 404 for any other name."""
        data = self._files.get(name)
        if data is None:
            raise ApiError(404, "no such page", code="not_found")
        headers = {"ETag": self._tags[name], "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self._tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers={**headers, "Content-Type": _kind(name)})


def router() -> APIRouter:
    """GET /, /label, /label/report, /chat and /static/..."""
    files = Files()
    routes = APIRouter(include_in_schema=False)

    @routes.get("/static/{name:path}")
    async def static(name: str, request: Request) -> Response:
        return files.response(name, request)

    def page(path: str, name: str) -> None:
        @routes.get(path)
        def show(request: Request) -> Response:
            response = files.response(name, request)
            key, store = request.query_params.get("key"), request.app.state.store
            # a link with a key signs a person in; the page then takes the key out of the address
            if key and store is not None and store.person_of(key) is not None:
                remember(response, key, secure=request.url.scheme == "https")
            return response

    for path, name in PAGES.items():
        page(path, name)
    return routes
