"""Work shared by processes, its results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tutelage.core.errors import RunError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
_shared: Any = None


def in_order(
    function: Callable[[S, T], R], shared: S, items: Sequence[T], workers: int, module: str
) -> Iterator[R]:
    """`function(shared, item)` of every item, in their order, made by `workers` processes (1: by this one).

    `function` is a module's own, and `shared`, which goes to each process once, and the items can be pickled; `module`
    imports what they need, once for all processes. What `function` raises is raised here, that of the earliest item.
    The processes end with this one, even if it is killed, and at once when the iteration is broken off. RunError when a
    process dies by itself (no memory, a signal).
    """
    if min(workers, len(items)) <= 1:
        for item in items:
            yield function(shared, item)
        return
    # no plain fork: a copy of this process would hold its locks, and its threads' mutexes for ever
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([module])
    ours, theirs = context.Pipe(duplex=False)
    with ProcessPoolExecutor(min(workers, len(items)), context, _begin, (shared, ours)) as pool, theirs:
        try:
            waiting: deque[Future[R]] = deque()
            for item in items:
                waiting.append(pool.submit(_call, function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RunError("a worker process died; is there memory for workers= processes? Try fewer") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            theirs.close()  # whatever is still at work ends


def _begin(shared: Any, alive: Connection) -> None:
    """In a worker: keep what all calls share, leave Ctrl-C to the parent, and end when the parent closes or ends."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()


def _end_with(alive: Connection) -> None:
    try:
        alive.recv()
    except (EOFError, OSError):
        os._exit(1)


def _call(function: Callable[[Any, Any], Any], item: Any) -> Any:
    return function(_shared, item)
