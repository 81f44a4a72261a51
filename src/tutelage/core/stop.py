"""Ctrl-C and SIGTERM: loops finish their step and save, everything else stops at once, and saving is not disturbed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(handler: Callable[..., Any] | signal.Handlers) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to `handler` meanwhile; elsewhere than in the main thread the caller owns the signals."""
    old = {}
    try:
        for sig in SIGNALS:
            old[sig] = signal.signal(sig, handler)
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
