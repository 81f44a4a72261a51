"""A model that another OpenAI-compatible server has, behind this server's keys, limits and pages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from tutelage.core.errors import TutelageError
from tutelage.engine import RemoteEngine
from tutelage.engine.transport import OF_THE_REQUEST, ServerError
from tutelage.serve.answers import DONE, EVENTS, dumps
from tutelage.serve.errors import ApiError, too_busy
from tutelage.serve.limits import Limits
from tutelage.serve.metrics import Metrics
from tutelage.serve.schema import Sampling
from tutelage.serve.watch import leaving


class Proxy:
    """Requests go on as they came, once they are known to be well formed; each in flight takes a thread."""

    def __init__(self, name: str, engine: RemoteEngine, limits: Limits, metrics: Metrics) -> None:
        self.name, self.engine, self.limits, self.metrics = name, engine, limits, metrics
        self.created = int(time.time())
        self._flying = 0
        self._threads = ThreadPoolExecutor(engine.workers, "remote")
        metrics.watch(name, lambda: min(self._flying, engine.workers), lambda: max(0, self._flying - engine.workers))

    async def answer(self, path: str, body: Sampling, request: Request) -> Response:
        """The other server's answer. ApiError 429 when too many wait for it, 502 when it fails."""
        said = body.model_dump(mode="json", exclude_unset=True, exclude={"model"})
        if self._flying >= self.engine.workers + self.limits.queue:
            raise too_busy(f"{self.name}: {self._flying} requests are under way")
        if body.stream:
            return _Forwarded(self, path, said)
        loop = asyncio.get_running_loop()
        self._flying += 1
        done = loop.run_in_executor(self._threads, self.engine.ask, path, said)
        # the request goes on there whether or not its client stays, so that its place is free only then
        done.add_done_callback(lambda _: self._landed())
        gone = loop.create_future()

        def leave() -> None:
            if not gone.done():
                gone.set_result(None)

        with leaving(request.receive, leave):
            await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            done.add_done_callback(lambda future: future.exception())  # looked at, so that nobody complains
            self.metrics.cancelled.labels(self.name).inc()
            return Response()
        try:
            found = done.result()
        except TutelageError as problem:
            raise refused(problem) from None
        return Response(dumps({**found, "model": self.name}), media_type="application/json")

    def _landed(self) -> None:
        self._flying -= 1

    async def events(self, path: str, said: dict[str, Any], gone: threading.Event) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream; setting `gone` hangs up. Raises ApiError."""
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def read() -> None:
            events = self.engine.follow(path, said)
            last: Any = None
            try:
                for event in events:
                    if gone.is_set():
                        break
                    loop.call_soon_threadsafe(inbox.put_nowait, event)
            except Exception as problem:  # handed to the reader, who raises it
                last = problem
            finally:
                events.close()
                loop.call_soon_threadsafe(inbox.put_nowait, last)

        self._flying += 1
        reading = loop.run_in_executor(self._threads, read)
        reading.add_done_callback(lambda _: self._landed())
        while (event := await inbox.get()) is not None:
            if isinstance(event, TutelageError):
                raise refused(event)
            if isinstance(event, Exception):
                raise event
            yield event

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Forwarded(Response):
    """Another server's stream."""

    def __init__(self, proxy: Proxy, path: str, said: dict[str, Any]) -> None:
        super().__init__()
        self.proxy, self.path, self.said = proxy, path, said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        gone, started = threading.Event(), False

        async def say(body: bytes, more: bool = True) -> None:
            nonlocal started
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            started = True
            await send({"type": "http.response.body", "body": body, "more_body": more})

        left: Callable[[], None] = gone.set
        with leaving(receive, left):
            try:
                async for event in self.proxy.events(self.path, self.said, gone):
                    if not gone.is_set():
                        await say(f"data: {dumps({**event, 'model': self.proxy.name})}\n\n".encode("ascii"))
                await say(DONE, more=False)
            except ApiError as problem:
                if not started:  # what it refused it refuses before the first event
                    await problem.response()(scope, receive, send)
                else:
                    await say(b"data: " + problem.json + b"\n\n", more=False)
            finally:
                gone.set()


def refused(problem: TutelageError) -> ApiError:
    """The other server's refusal as ours: what it blames the request for is a 400, the rest is its own failure."""
    if isinstance(problem, ServerError):
        if problem.status in OF_THE_REQUEST:
            return ApiError(400, str(problem))
        if problem.status == 429:
            return too_busy(str(problem), problem.wait or 1.0)
    return ApiError(502, str(problem), code="upstream_failed")
