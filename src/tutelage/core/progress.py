"""How far a long job is, on stderr: a bar with the time left on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

T = TypeVar("T")
console = Console(stderr=True, highlight=False)
LINE_SECONDS = 30.0
"""Between the lines in a log file."""


class Progress:
    """Context that shows how many of `total` units of one job are done, with units a second and the time left.

    `count()` says how many are done where `over` cannot count them itself; `every`: seconds between showings.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        total: float | None = None,
        count: Callable[[], float] | None = None,
        every: float | None = None,
    ) -> None:
        self.name, self.unit, self.total, self.done, self._count = name, unit, total, 0.0, count
        self._every = every if every is not None else 0.1 if console.is_terminal else LINE_SECONDS
        self._began = self._shown = 0.0
        self._bars: Bars | None = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self._began = self._shown = time.perf_counter()
        if console.is_terminal:
            columns = (TextColumn(f"[bold]{self.name}[/]"), BarColumn(), TextColumn("{task.fields[words]}"))
            self._bars = Bars(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._bars.start()
            self._task = self._bars.add_task("", total=self.total, words="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on; each is a unit done, unless `count` was given."""
        for item in items:
            yield item
            self.at(self._count() if self._count else self.done + 1)

    def add(self, count: float = 1) -> None:
        """So many units more are done."""
        self.at(self.done + count)

    def at(self, done: float) -> None:
        """So many units are done."""
        self.done = done
        now = time.perf_counter()
        if now - self._shown < self._every:
            return
        self._shown = now
        words = self.words(now - self._began)
        if self._bars:
            self._bars.update(self._task, completed=done, words=words)
        else:
            console.print(f"[bold]{self.name}[/] {words}  ETA {self.left(now - self._began)}")

    def words(self, seconds: float) -> str:
        """"120/400 prompts  31 prompts/s"."""
        places = 0 if max(self.total or 0, self.done) >= 100 else 1
        whole = f"/{self.total:,.{places}f}" if self.total else ""
        rate = self.done / max(seconds, 1e-9)
        return f"{self.done:,.{places}f}{whole} {self.unit}  {rate:,.{0 if rate >= 9.95 else 1}f} {self.unit}/s"

    def left(self, seconds: float) -> str:
        """The time left, in words."""
        if not self.total or not self.done:
            return "unknown"
        return f"{max(0.0, seconds * (self.total / self.done - 1)):.0f}s"

