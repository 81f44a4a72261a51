"""Noticing that a client has gone, while its answer is being made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Receive

PIPE = "tutelage.pipe"
"""Where a request's scope has its connection's Pipe, among the extensions."""


@contextmanager
def leaving(receive: Receive, leave: Callable[[], None]) -> Iterator[None]:
    """Within: leave() is called when the client goes away (sends then do nothing). The body must have been read."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    listening = asyncio.get_running_loop().create_task(listen())
    try:
        yield
    finally:
        listening.cancel()
