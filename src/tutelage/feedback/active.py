"""New answers while people rank: sampled from a model, and handed out with those first on which a reward model is least
decided.

A ranking teaches a reward model most where it does not know the order yet: pairs that it puts at P(preferred) = 1/2
(uncertainty sampling; Lewis & Gale 1994). An item's priority is the mean entropy of P(preferred) over its pairs.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from tutelage.core.errors import DataError, in_words
from tutelage.engine import LocalEngine, RemoteEngine
from tutelage.feedback.store import Store
from tutelage.train.candidates import sample_answers, turns_of
from tutelage.train.rewards import Reward, judge_rows

Row = dict[str, Any]


def uncertainty(scores: Sequence[float]) -> float:
    """How undecided a reward model is between the answers: the mean over pairs of the entropy in bits of P(preferred) =
    sigmoid(difference); 1 where it cannot tell any two apart, near 0 where it is sure of all."""
    pairs = list(combinations(scores, 2))
    if not pairs:
        raise DataError(f"{len(scores)} score, expected at least 2")
    return sum(_entropy(a - b) for a, b in pairs) / len(pairs)


def _entropy(difference: float) -> float:
    """Bits of a coin with log-odds `difference`."""
    d = abs(difference)
    odds = math.exp(-d)  # of the less likely side; never overflows
    return (math.log1p(odds) + d * odds / (1 + odds)) / math.log(2)


class ActiveSampler:
    """A thread that samples answers to `rows` (prompts with columns) and adds them to a batch of the store.

    Prompts that the batch has already are left out, so that a server that is started again goes on. `reward`: a reward
    function or model; without one, items come in the rows' order. `origin` (model, run ...) stands beside each answer.
    An error ends the thread and is told by `state()`; what was added stays.
    """

    def __init__(
        self,
        store: Store,
        batch: str,
        engine: LocalEngine | RemoteEngine,
        rows: Sequence[Row],
        *,
        reward: Reward | None = None,
        responses: int = 4,
        temperature: float | Sequence[float] = 1.0,
        max_tokens: int = 24,
        seed: int = 0,
        at_once: int = 8,
        origin: Mapping[str, Any] | None = None,
        data: str = "prompts",
    ) -> None:
        self.store, self.batch, self.engine, self.reward = store, batch, engine, reward
        self.turns = turns_of(temperature, responses)
        self.max_tokens, self.seed, self.at_once, self.data = max_tokens, seed, at_once, data
        self.origin = dict(origin or {})
        known = store.known_prompts(batch, [row["prompt"] for row in rows])
        self.rows = [(number, row) for number, row in enumerate(rows) if not known[number]]
        self.total = len(rows)
        self.done = self.total - len(self.rows)
        self.alike = 0
        """Prompts whose answers were all the same, which says nothing about order: they became no items."""
        self.error: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="active sampling", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the prompts that are being answered, and wait for it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def state(self) -> dict[str, Any]:
        """For the page: prompts done of how many, whether it has ended, and why if it failed."""
        ended = self._thread.ident is not None and not self._thread.is_alive()
        return {"done": self.done, "total": self.total, "ended": ended, "error": self.error}

    def _run(self) -> None:
        try:
            for some in self._pieces():
                if self._stop.is_set():
                    return
                self._add(some)
        except Exception as problem:  # of the engine, a user's reward function, the store: told on the page
            self.error = in_words(problem)

    def _pieces(self) -> Iterator[list[tuple[int, Row]]]:
        # few at first, so that whoever waits before an empty page sees the first item soon
        start, size = 0, min(2, self.at_once)
        while start < len(self.rows):
            yield self.rows[start : start + size]
            start, size = start + size, min(2 * size, self.at_once)

    def _add(self, some: Sequence[tuple[int, Row]]) -> None:
        rows = [row for _, row in some]
        stream = ("active sampling", self.batch, some[0][0])
        said = sample_answers(self.engine, rows, self.turns, self.max_tokens, self.seed, stream, self.data)
        for row, texts in zip(rows, said):
            answers = list(dict.fromkeys(texts))
            if len(answers) > 1:
                item = {**row, "responses": [{"text": text, **self.origin} for text in answers]}
                self.store.add_items(self.batch, [item], self._priority(row, answers))
            else:
                self.alike += 1
            self.done += 1

    def _priority(self, row: Row, answers: Sequence[str]) -> float:
        if self.reward is None:
            return 0.0
        return uncertainty(judge_rows(self.reward, [row] * len(answers), answers))
