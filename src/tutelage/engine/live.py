"""Decoding for an event loop: rows are submitted without waiting, and what every step sampled comes back in one call.

`LocalEngine.decode` keeps a thread waiting for each call. A server has hundreds of readers in one thread; here one
thread of the engine decodes for all of them. What arrives between two steps becomes one session, so that it is
prefilled together and shares its beginnings; it joins the batch that is running, whoever drives that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tutelage.engine.rows import Cancelled, Finished, Request
from tutelage.engine.session import Session
from tutelage.model.forward import evaluating

if TYPE_CHECKING:
    from tutelage.engine.local import LocalEngine

log = logging.getLogger("tutelage")

Event = tuple[Any, int, Any, Any]
"""(reader, token, its log-prob, its alternatives or None) of a sampled token; (reader, -1, Finished or the error, None)
of a row's end."""


class Job:
    """The rows of one prompt; row i's events go to readers[i]."""

    def __init__(self, requests: Sequence[Request], readers: Sequence[Any]) -> None:
        self.requests, self.readers = requests, readers
        self.left = len(requests)
        """Rows that have not ended."""
        self.session: Session | None = None
        self.number = -1
        """Of its group in the session."""
        self.gone = False


class Live:
    """The thread that decodes jobs. deliver(events) is called in that thread after each step that made some; it must
    be quick and must not raise (an event loop's call_soon_threadsafe)."""

    def __init__(self, engine: LocalEngine, deliver: Callable[[list[Event]], None]) -> None:
        self.engine = engine
        self._deliver = deliver
        self._lock = threading.Lock()
        self._new: list[Job] = []
        self._gone: list[Job] = []
        self._running: dict[Job, None] = {}
        self._events: list[Event] = []
        self._wake = threading.Event()
        self._closed = False
        self._plans = engine.support.plans
        if self._plans:
            engine._scheduler.lives.append(self)
        self._thread = threading.Thread(target=self._work, name="decode", daemon=True)
        self._thread.start()

    # called by the event loop

    def submit(self, requests: Sequence[Request], readers: Sequence[Any]) -> Job:
        """Begin to decode the rows of one prompt (see ``LocalEngine.rows``)."""
        job = Job(requests, readers)
        for request, reader in zip(requests, readers, strict=True):
            request.on_sample, request.on_end = self._told(job, reader), self._ended(job, reader)
        with self._lock:
            self._new.append(job)
        self._wake.set()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants the job any more: its rows leave before the next step. No further event of it is promised or
        ruled out."""
        job.gone = True
        with self._lock:
            self._gone.append(job)
        self._wake.set()

    @property
    def waiting(self) -> int:
        """Rows that are not decoded yet."""
        with self._lock:
            rows = sum(len(job.requests) for job in self._new)
            sessions = {id(job.session): job.session for job in self._running if job.session is not None}
        return rows + sum(len(group.requests) for s in sessions.values() for group in list(s.pending))

    @property
    def busy(self) -> bool:
        """Whether there is anything to decode."""
        return bool(self._new or self._running)

    def close(self) -> None:
        """End the thread when everything submitted is done."""
        self._closed = True
        self._wake.set()
        self._thread.join()
        if self._plans:
            self.engine._scheduler.lives.remove(self)

    # called by whoever drives the scheduler

    def take_in(self) -> Session | None:
        """Let go of what is not wanted any more; the session of what has arrived, if anything has."""
        with self._lock:
            new, self._new = self._new, []
            gone, self._gone = self._gone, []
            new = [job for job in new if not job.gone]
            self._running.update(dict.fromkeys(new))
        for job in gone:
            if job in self._running:
                del self._running[job]
                if job.session is not None:
                    self.engine._scheduler.drop(job.session, job.number)
        if not new:
            return None
        session = Session([job.requests for job in new], prefixes=self.engine._scheduler.prefixes)
        session.waited = False
        for number, job in enumerate(new):
            job.session, job.number = session, number
        self.engine.counts.add(sum(len(r.prompt) for job in new for r in job.requests), session.prompt_tokens)
        return session

    def flush(self) -> None:
        """Deliver what happened since the last time."""
        if self._events:
            events = self._events[:]
            self._events.clear()
            self._deliver(events)

    # the thread

    def _told(self, job: Job, reader: Any) -> Callable[[int, float, Any], None]:
        append = self._events.append
        if self._plans:
            return lambda token, logprob, top: append((reader, token, logprob, top))

        def told(token: int, logprob: float, top: Any) -> None:
            if job.gone:  # in a static batch a row leaves by an error of its own
                raise Cancelled
            append((reader, token, logprob, top))
            self.flush()

        return told

    def _ended(self, job: Job, reader: Any) -> Callable[[Finished | BaseException], None]:
        def ended(result: Finished | BaseException) -> None:
            self._events.append((reader, -1, result, None))
            job.left -= 1
            if not job.left:
                self._running.pop(job, None)

        return ended

    def _work(self) -> None:
        engine = self.engine
        while not self._closed or self.busy:
            self._wake.wait()
            self._wake.clear()
            while self.busy:
                try:
                    with torch.inference_mode(), evaluating(engine.model), engine.autocast():
                        if self._plans:
                            engine._scheduler.rules.eos = engine.eos_tokens
                            engine._scheduler.run(Anchor(self))
                            self._check()
                        else:
                            self._static()
                except Exception as problem:  # the readers are told, and the next ones are served
                    log.exception("decoding failed")
                    self._fail(problem)
                self.flush()

    def _check(self) -> None:
        """Raise the error that ended our sessions, in whichever thread it happened."""
        for job in list(self._running):
            if job.session is not None and job.session.error is not None:
                raise job.session.error

    def _static(self) -> None:
        """One batch of everything that waits, for a model that cannot follow plans."""
        with self._lock:
            jobs, self._new, self._gone = [job for job in self._new if not job.gone], [], []
            self._running.update(dict.fromkeys(jobs))
        found = self.engine.decode([job.requests for job in jobs]) if jobs else []
        for job, results in zip(jobs, found, strict=True):
            for request, result in zip(job.requests, results, strict=True):
                if request.on_end is not None:
                    request.on_end(result)

    def _fail(self, problem: BaseException) -> None:
        with self._lock:
            jobs, self._new, self._gone = [*self._running, *self._new], [], []
            self._running.clear()
        for job in jobs:
            self._events += [(reader, -1, problem, None) for reader in job.readers]


class Anchor(Session):
    """What the thread runs: over when nothing is left to decode."""

    def __init__(self, live: Live) -> None:
        super().__init__([])
        self.live = live

    @property
    def over(self) -> bool:
        """See Session."""
        return not self.live.busy or self.error is not None
