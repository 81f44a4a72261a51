"""Ctrl-C and SIGTERM: loops finish their step and save, everything else stops at once, and saving is not disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []


def exit_code() -> int:
    """128 + the last signal that came, as a shell reports a process that it ended: 130 of Ctrl-C, 143 of SIGTERM."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def _noted(handler: Callable[..., Any]) -> Callable[..., Any]:
    def on(number: int, frame: Any) -> Any:
        _received.append(number)
        return handler(number, frame)

    return on


@contextmanager
def handled(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `handler` meanwhile; elsewhere than in the main thread the caller owns the signals."""
    old = {}
    try:
        for sig in SIGNALS:
            old[sig] = signal.signal(sig, _noted(handler) if callable(handler) else handler)
    except ValueError:
        old = {}
    try:
        yield
    finally:
        for sig, before in old.items():
            signal.signal(sig, before)


def stops_at_once() -> Any:
    """Context in which SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    return handled(signal.default_int_handler)


def undisturbed() -> Any:
    """Context for the moments of saving, in which neither signal does anything."""
    return handled(signal.SIG_IGN)


class StopFlag:
    """Context in which the signals set a flag that a loop reads between its steps."""

    def __init__(self) -> None:
        self.set = False

    def __enter__(self) -> StopFlag:
        self._handled = handled(self._on)
        self._handled.__enter__()
        return self

    def _on(self, *_: Any) -> None:
        if not self.set:  # written without buffers or locks: the signal may have come in the middle of a print
            with suppress(OSError):
                os.write(2, b"\nstopping: this step is finished and saved first\n")
        self.set = True

    def __exit__(self, *_: Any) -> None:
        self._handled.__exit__(None, None, None)
