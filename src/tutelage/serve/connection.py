"""One client's connection, with the patience that uvicorn's own has not: headers that never end, and readers that take
nothing."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tutelage.serve.limits import Limits
from tutelage.serve.watch import PIPE

HEAD_BYTES = 1 << 16
"""Most bytes of a request's line and headers."""


class Pipe:
    """A way to write parts of an answer that has begun without waking its task: a stream's next tokens, at every step.

    ASGI's send takes a task switch and six calls through middleware for each part. At one part a token and 64 readers
    that was a third of the server's time.
    """

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._cycle, self._transport, self._flow = cycle, connection.transport, connection.flow

    @property
    def ready(self) -> bool:
        """Whether a part may be written now: the answer is chunked and open, and the client takes what it is sent."""
        cycle = self._cycle
        running = cycle.response_started and not cycle.response_complete and not cycle.disconnected
        return running and bool(cycle.chunked_encoding) and not self._flow.write_paused

    def write(self, body: bytes) -> None:
        """Write a part that is not empty."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(body), body))


class Connection(HttpToolsProtocol):
    """uvicorn's protocol within the limits' seconds."""

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0
        """Bytes since the last request, while the next one's headers are incomplete."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._left = 0
        """Bytes that were not taken when last looked."""

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._expect_head(0)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if self.parser is not None and not self.transport.is_closing():
            self._expect_head(len(data))

    def _expect_head(self, size: int) -> None:
        """Count bytes and seconds as long as no request is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            return
        self._head += size
        if self._head > HEAD_BYTES:
            self.send_400_response("The headers are too large.")
        elif self._head_timer is None and (self.cycle is None or size):
            self._head_timer = self.loop.call_later(self.limits.header_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        extensions: Any = {PIPE: Pipe(self, cycle)}
        cycle.scope["extensions"] = extensions
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """What was answered must be taken in time, whether the connection stays open or not."""
        super().on_response_complete()
        self._head = 0
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def shutdown(self) -> None:
        """See uvicorn: the server stops."""
        super().shutdown()
        self._watch_writing()

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the client takes less than it is sent."""
        super().pause_writing()
        self._watch_writing()

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            self._left = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.limits.send_seconds, self._look)

    def _look(self) -> None:
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        if left and left >= self._left:
            self.transport.abort()
        elif left:
            self._watch_writing()


def within(limits: Limits) -> type[Connection]:
    """The protocol with these limits."""
    return type("Connection", (Connection,), {"limits": limits})
