"""Streaming: decoding runs in a thread (inference mode is per thread), text is released as soon as it is certain."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tutelage.engine.requests import Piece, SamplingParams
from tutelage.engine.rows import Cancelled, Request


def _certain(text: str, stops: Sequence[str]) -> int:
    """Length of the part of ``text`` that cannot become part of a stop string or an unfinished character."""
    end = len(text)
    while end and text[end - 1] == "\ufffd":
        end -= 1
    for stop in stops:
        for size in range(min(len(stop), end), 0, -1):
            if text[:end].endswith(stop[:size]):
                end -= size
                break
    return end


def stream_pieces(engine: Any, ids: Sequence[int], params: SamplingParams, seed: int) -> Iterator[Piece]:
    """Pieces of one completion; their texts joined are the completion's text."""
    params = replace(params, n=1)
    inbox: queue.Queue[Any] = queue.Queue()
    gone = threading.Event()

    def work() -> None:
        try:
            inbox.put(engine.complete(Request(ids, params, seed, inbox.put), gone))
        except Cancelled:
            pass
        except BaseException as problem:  # handed to the reader, who raises it
            inbox.put(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    tokens: list[int] = []
    sent = ""
    unsent: list[int] = []
    try:
        while True:
            item = inbox.get()
            if isinstance(item, BaseException):
                raise item
            if not isinstance(item, int):
                yield Piece(item.text[len(sent) :], tuple(unsent), item.finish_reason)
                return
            tokens.append(item)
            unsent.append(item)
            text = engine.continuation_text(ids, tokens)
            if any(stop in text for stop in params.stop):
                continue
            text = text[: _certain(text, params.stop)]
            if len(text) > len(sent):
                yield Piece(text[len(sent) :], tuple(unsent))
                sent, unsent = text, []
    finally:
        gone.set()
        thread.join()
