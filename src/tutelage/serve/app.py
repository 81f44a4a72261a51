"""The application: models, keys, pages and a ranking store under one address."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI
from fastapi.responses import Response

import tutelage
from tutelage.engine import LocalEngine, RemoteEngine
from tutelage.serve import errors, openai_api, pages, session
from tutelage.serve.access import Keys, need_key
from tutelage.serve.desk import Desk
from tutelage.serve.limits import BodyLimit, Limits
from tutelage.serve.metrics import CONTENT_TYPE, Metrics
from tutelage.serve.proxy import Proxy
from tutelage.serve.schema import ErrorAnswer, Health
from tutelage.serve.security import Security

if TYPE_CHECKING:
    from tutelage.feedback.store import Store

PAGE_APIS = {"label": "tutelage.serve.label_api", "chat": "tutelage.serve.chat_api"}


def create_app(
    models: Mapping[str, LocalEngine | RemoteEngine],
    *,
    store: Store | None = None,
    rewards: Mapping[str, Any] | None = None,
    keys: Keys | None = None,
    limits: Limits | None = None,
    batch: str | None = None,
    local: bool = True,
    best: str | None = None,
) -> FastAPI:
    """The application over some models by name.

    store: where rankings go; rewards: reward models by name, whose scores the pages show; batch: the batch that is
    ranked; local: bound to this machine alone, so that without keys a person may pick a new name, and only this
    machine's names are accepted as the host; best: the model that is meant where a request names none (the last one).
    """
    limits = limits or Limits()
    metrics = Metrics()
    served = {name: _served(name, engine, limits, metrics) for name, engine in models.items()}

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        for one in served.values():
            one.close()

    app = FastAPI(
        title="tutelage", version=tutelage.__version__, lifespan=life, docs_url=None, redoc_url=None,
        description="An OpenAI-compatible API on tutelage's engine.",
    )  # fmt: skip
    app.state.models, app.state.served = dict(models), served
    app.state.store, app.state.rewards, app.state.keys = store, dict(rewards or {}), keys
    app.state.batch, app.state.local, app.state.limits = batch, local, limits
    app.state.stopping = False
    errors.install(app)
    best = best or next(reversed(served), "")

    def counted(endpoint: str, model: str, status: int) -> None:
        metrics.requests.labels(endpoint, model, str(status)).inc()

    app.include_router(openai_api.router(openai_api.Api(served, best, limits), counted))
    _add_state(app, metrics)
    app.include_router(session.router(), responses=openai_api.REFUSALS)
    if store is not None:
        _include(app, "label")
    _include(app, "chat")
    app.include_router(pages.router())
    _without_422(app)
    app.add_middleware(BodyLimit, limits=limits)
    app.add_middleware(Security, local=local and keys is None)
    return app


def _served(name: str, engine: LocalEngine | RemoteEngine, limits: Limits, metrics: Metrics) -> Desk | Proxy:
    made = Proxy if isinstance(engine, RemoteEngine) else Desk
    return made(name, engine, limits, metrics)  # type: ignore[arg-type]


def _add_state(app: FastAPI, metrics: Metrics) -> None:
    """/health and /metrics."""

    @app.get("/health", response_model=None, responses={200: {"model": Health}}, tags=["state"])
    async def health() -> dict[str, Any]:
        """Whether the server is up, and whether it is about to stop."""
        return {"status": "stopping" if app.state.stopping else "ok", "models": list(app.state.served)}

    @app.get(
        "/metrics", response_class=Response, dependencies=[Depends(need_key)], tags=["state"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: {"model": ErrorAnswer}},
    )  # fmt: skip
    async def prometheus() -> Response:
        """Requests, tokens, queue and times in Prometheus' text format."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _include(app: FastAPI, name: str) -> None:
    """The routes of a page's API, where that part is there."""
    try:
        module = import_module(PAGE_APIS[name])
    except ModuleNotFoundError as problem:
        if problem.name != PAGE_APIS[name]:
            raise
        return
    app.include_router(module.router(app), responses=openai_api.REFUSALS)


def _without_422(app: FastAPI) -> None:
    """The document says 400 for an invalid request, as the server does, where FastAPI writes 422."""
    written = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = written()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for unused in ("HTTPValidationError", "ValidationError"):
                document.get("components", {}).get("schemas", {}).pop(unused, None)
        return app.openapi_schema or written()

    app.openapi = openapi  # type: ignore[method-assign]
