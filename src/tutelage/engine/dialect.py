"""What one server refuses to hear: arguments that it names otherwise, or wants left out where they say nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tutelage.engine.transport import ServerError

T = TypeVar("T")
REFUSES = re.compile(r"unsupported|not support|not allowed|instead", re.IGNORECASE)
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "n": 1}
"""Values that ask for nothing. They are sent nevertheless, as many servers' defaults are a model's own settings."""


class Dialect:
    """Bodies as a server takes them, learnt from its refusals; one for each path, safe to use from threads.

    OpenAI's reasoning models refuse ``max_tokens`` and name ``max_completion_tokens`` in its place, and refuse
    ``top_p`` whatever its value.
    """

    def __init__(self) -> None:
        self._renamed: dict[str, dict[str, str]] = {}
        self._unsaid: dict[str, set[str]] = {}

    def of(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The body as the server takes it."""
        names, unsaid = self._renamed.get(path, {}), self._unsaid.get(path, set())
        said = {k: v for k, v in body.items() if not (k in unsaid and v == NEUTRAL[k])}
        return {names.get(k, k): v for k, v in said.items()}

    def learn(self, path: str, sent: dict[str, Any], problem: ServerError, body: dict[str, Any]) -> bool:
        """Whether another try is worth it after `problem` with `sent`, which was made of `body`."""
        words = str(problem)
        if problem.status not in (400, 422) or not REFUSES.search(words):
            return False
        if "max_tokens" in sent and "max_completion_tokens" in words:
            self._renamed[path] = {"max_tokens": "max_completion_tokens"}
        for name, value in NEUTRAL.items():
            if sent.get(name) == value and any(f"{mark}{name}{mark}" in words for mark in "'\"`"):
                self._unsaid[path] = {*self._unsaid.get(path, ()), name}
        return self.of(path, body) != sent  # another thread may have learnt it meanwhile

    def ask(self, path: str, body: dict[str, Any], send: Callable[[str, dict[str, Any]], T]) -> T:
        """`send(path, body)`, said again where the server refused how it was said."""
        while True:
            sent = self.of(path, body)
            try:
                return send(path, sent)
            except ServerError as problem:
                if not self.learn(path, sent, problem, body):
                    raise

    def follow(
        self, path: str, body: dict[str, Any], send: Callable[[str, dict[str, Any]], Iterator[dict[str, Any]]]
    ) -> Iterator[dict[str, Any]]:
        """The events of `send(path, body)`, said again where the server refused how it was said."""

        def begin(path: str, sent: dict[str, Any]) -> tuple[Any, dict[str, Any] | None]:
            events = send(path, sent)
            return events, next(events, None)  # a refusal comes before the first event

        events, first = self.ask(path, body, begin)
        try:
            if first is not None:
                yield first
                yield from events
        finally:
            events.close()
