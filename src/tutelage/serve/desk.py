"""One model as the server sees it: who is let in, what their rows sampled so far, and who is told when there is more.

The engine's thread hands over what each step sampled in one call (engine/live.py); here, in the event loop, it is put
to the rows' readers, each of whom is woken once. A reader that is slow finds more tokens at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tutelage.core.errors import TutelageError, in_words
from tutelage.engine import Completion, LocalEngine, SamplingParams
from tutelage.engine.live import Event, Job, Live
from tutelage.engine.rows import Finished, Request
from tutelage.engine.texts import Growing
from tutelage.serve.errors import ApiError, too_busy
from tutelage.serve.limits import Limits
from tutelage.serve.metrics import Metrics

TURN = 0.005
"""Seconds that the engine lets the event loop write what a step sampled, before the next step. Two threads that both
want the interpreter all the time get less done than one after the other (a tenth less, at 64 readers); a loop that is
busy otherwise does not hold the engine up."""
LONG = 1 << 15
"""Bytes of text from which on encoding is left to another thread."""


class Row:
    """One answer: what it sampled so far. index: its place among the answer's choices."""

    __slots__ = ("ask", "end", "fed", "growing", "index", "offsets", "over", "request", "told", "tokens")

    def __init__(self, ask: Ask, index: int, request: Request) -> None:
        self.ask, self.index, self.request = ask, index, request
        self.tokens: list[tuple[int, float, Any]] = []
        self.end: Finished | BaseException | None = None
        # of a stream: tokens whose text was looked at, tokens that were told, where the ones between begin, and
        # whether the end was told
        self.growing: Growing | None = None
        self.fed = self.told = 0
        self.offsets: list[int] = []
        self.over = False

    @property
    def sampled(self) -> int:
        """Tokens of it, that which ended it included."""
        return len(self.end.tokens) if isinstance(self.end, Finished) else len(self.tokens)

    def completion(self) -> Completion:
        """The whole answer, once it has ended. ApiError where it failed."""
        if isinstance(self.end, Finished):
            try:
                return self.ask.desk.engine.texts.completion(self.request, self.end)
            except Exception as problem:  # the model gives NaN, or a decoder raises at these tokens
                raise ApiError(500, in_words(problem), code="model_failed") from None
        raise ApiError(500, "the model failed at this request; the server's log says why", code="model_failed")

    def cut(self) -> None:
        """End it here, as if this were its length."""
        ids = [token for token, _, _ in self.tokens]
        top = [top or {} for _, _, top in self.tokens] if self.request.params.logprobs else None
        self.end = Finished(ids, [logprob for _, logprob, _ in self.tokens], "length", top)


class Ask:
    """The rows of one request. Closing it, finished or not, frees their places."""

    def __init__(self, desk: Desk, groups: Sequence[Sequence[Request]]) -> None:
        self.desk, self.groups = desk, groups
        self.rows = [Row(self, i, request) for i, request in enumerate(r for group in groups for r in group)]
        self.left = len(self.rows)
        self.began = time.perf_counter()
        self.started = False
        """Whether a token was sampled."""
        self.gone = False
        """Whether the client has gone."""
        self.on_step: Callable[[], None] | None = None
        """Called after each step in which rows of it sampled, while some go on; None: nobody looks before the end."""
        self._waiter: asyncio.Future[None] | None = None
        self._news = False
        self._jobs: list[Job] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Hand the rows to the engine."""
        at = 0
        for group in self.groups:
            self._jobs.append(self.desk.live.submit(group, self.rows[at : at + len(group)]))
            at += len(group)
        self._timer = asyncio.get_running_loop().call_later(self.desk.limits.seconds, self._expire)

    def growing(self, request: Request) -> Growing:
        """The text of a row as its tokens come."""
        return Growing(self.desk.engine.texts, request, self.desk.eos)

    async def news(self) -> None:
        """Wait until a row has sampled or ended since the last call."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._news = False

    def wake(self) -> None:
        """There is something to read."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def ended(self) -> None:
        """Wait for the end of all rows, or of the client."""
        while self.left and not self.gone:
            await self.news()

    def leave(self) -> None:
        """The client has gone."""
        self.gone = True
        self.wake()

    def _expire(self) -> None:
        for row in self.rows:
            if row.end is None:
                row.cut()
                self.left -= 1
        self._cancel()
        self.wake()

    def _cancel(self) -> None:
        for job in self._jobs:
            if job.left:
                self.desk.live.cancel(job)

    def close(self) -> None:
        """Nobody reads any more."""
        if self._timer is not None:
            self._timer.cancel()
        metrics, name = self.desk.metrics, self.desk.name
        if self.left:
            self._cancel()
            metrics.cancelled.labels(name).inc()
        elif self.started:
            metrics.whole.labels(name).observe(time.perf_counter() - self.began)
        self.desk.leave(self)


class Desk:
    """A local engine with its queue. All of it belongs to one event loop."""

    def __init__(self, name: str, engine: LocalEngine, limits: Limits, metrics: Metrics) -> None:
        self.name, self.engine, self.limits, self.metrics = name, engine, limits, metrics
        self.created = int(time.time())
        self.eos = frozenset(engine.eos_tokens)
        self.asks: set[Ask] = set()
        self._rows = 0
        self._live: Live | None = None
        self._tokens = metrics.tokens.labels(name)
        self._scoring: asyncio.Lock | None = None
        metrics.watch(name, lambda: self._rows - self.waiting, lambda: self.waiting)

    @property
    def waiting(self) -> int:
        """Rows that wait for a place in the batch."""
        return min(self._live.waiting, self._rows) if self._live is not None else 0

    @property
    def live(self) -> Live:
        """The engine's thread, started at the first request."""
        if self._live is None:
            loop, told = asyncio.get_running_loop(), threading.Event()

            def dispatch(events: list[Event]) -> None:
                try:
                    self._dispatch(events)
                finally:
                    told.set()

            def deliver(events: list[Event]) -> None:
                told.clear()
                try:
                    loop.call_soon_threadsafe(dispatch, events)
                except RuntimeError:  # the loop has ended, and nobody is left to tell
                    return
                told.wait(TURN)

            self._live = Live(self.engine, deliver)
        return self._live

    async def ask(self, prompts: Sequence[Any], params: SamplingParams, size: int) -> Ask:
        """The rows of some prompts, ready to start. `size`: bytes of the request.

        ApiError 429 when the queue is full, 400 for a prompt that cannot be served.
        """
        count, most = len(prompts) * params.n, self.engine.max_rows + self.limits.queue
        if count > most:
            raise ApiError(400, f"n: {count} answers are more than this server ever makes or queues ({most})", "n")
        if self._rows + count > most:
            words = f"{self.name}: {self._rows} answers are being made or waited for, and {count} more do not fit"
            raise too_busy(words, self._wait())
        self._rows += count  # before anything is awaited, so that nobody else takes the places
        try:
            if size > LONG:
                groups = await asyncio.to_thread(self._rows_of, prompts, params)
            else:
                groups = self._rows_of(prompts, params)
        except BaseException:
            self._rows -= count
            raise
        ask = Ask(self, groups)
        self.asks.add(ask)
        self.metrics.prompt_tokens.labels(self.name).inc(sum(len(group[0].prompt) for group in groups))
        return ask

    def _rows_of(self, prompts: Sequence[Any], params: SamplingParams) -> list[list[Request]]:
        groups = []
        for i, prompt in enumerate(prompts):
            try:
                groups.append(self.engine.rows(prompt, params))
            except Exception as problem:  # a tokenizer or a template raises whatever it likes at somebody's text
                words = str(problem) if isinstance(problem, TutelageError) else f"cannot be encoded: {problem}"
                where = f"prompt {i}: " if len(prompts) > 1 else ""
                code = "context_length_exceeded" if "the model's context is" in words else None
                param = "messages" if params.n and not isinstance(prompt, str) and _is_chat(prompt) else "prompt"
                raise ApiError(400, where + words, param, code) from None
        return groups

    def _wait(self) -> float:
        """Seconds after which another try may do: the age of the oldest request, within bounds."""
        oldest = min((ask.began for ask in self.asks), default=time.perf_counter())
        return min(30.0, max(1.0, time.perf_counter() - oldest))

    def leave(self, ask: Ask) -> None:
        """Give an ask's places back."""
        if ask in self.asks:
            self.asks.remove(ask)
            self._rows -= len(ask.rows)

    async def score(self, prompts: Sequence[Sequence[int]], top: int) -> list[Any]:
        """Scores of whole prompts (each token given those before it), in another thread, one call at a time."""
        if self._scoring is None:
            self._scoring = asyncio.Lock()
        pairs = [(prompt[:1], prompt[1:]) for prompt in prompts]
        async with self._scoring:
            return await asyncio.to_thread(self.engine.score, pairs, 2048, top)

    def _dispatch(self, events: list[Event]) -> None:
        woken: dict[Ask, None] = {}
        sampled = 0
        for row, token, value, top in events:
            ask = row.ask
            if row.end is not None:
                continue
            if token >= 0:
                row.tokens.append((token, value, top))
                sampled += 1
                if not ask.started:
                    ask.started = True
                    self.metrics.first.labels(self.name).observe(time.perf_counter() - ask.began)
            else:
                row.end = value
                ask.left -= 1
            woken[ask] = None
        self._tokens.inc(sampled)
        for ask in woken:
            if not ask.left:
                ask.wake()
            elif ask.on_step is not None:
                ask.on_step()

    def close(self) -> None:
        """End the engine's thread."""
        if self._live is not None:
            self._live.close()
            self._live = None


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
