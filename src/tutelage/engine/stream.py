"""Streaming: decoding runs in a thread (inference mode is per thread), text is released as soon as it is certain."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tutelage.engine.requests import Piece
from tutelage.engine.rows import Cancelled, Request
from tutelage.engine.texts import Growing


def stream_pieces(engine: Any, request: Request) -> Iterator[Piece]:
    """Pieces of one completion; their texts joined are the completion's text."""
    inbox: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()

    def work() -> None:
        try:
            inbox.put(engine.complete(replace(request, on_sample=lambda token, *_: inbox.put(token)), gone))
        except Cancelled:
            pass
        except BaseException as problem:  # handed to the reader, who raises it
            inbox.put(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    text = Growing(engine.texts, request, engine.eos_tokens)
    unsent: list[int] = []
    try:
        while True:
            item = inbox.get()
            if isinstance(item, BaseException):
                raise item
            if not isinstance(item, int):
                yield Piece(text.rest(item.text), tuple(unsent), item.finish_reason)
                return
            unsent.append(item)
            new = text.add(item)
            if new:
                yield Piece(new, tuple(unsent))
                unsent = []
    finally:
        gone.set()
        thread.join()
