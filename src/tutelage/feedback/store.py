"""The ranking store: prompts, answers, people and what they judged, in SQLite or a database server.

Every method is a transaction of its own and may be called from any thread; when it has returned, what it wrote is on
the disk. Nothing that a person said is overwritten. What the tables are is in tables.py; this file only opens
transactions, the SQL is in the files that it imports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, TimeoutError

from tutelage.core.errors import RunError
from tutelage.feedback import agreement, assignment, exchange, items, judging, people, prompts
from tutelage.feedback.database import first_line, name_of, open_database
from tutelage.feedback.rows import BatchInfo, Item, Judgement, Person, Progress, Prompt, Row

T = TypeVar("T")
CHAT = "chat"
"""The batch of votes from the chat page."""
_TRIES = 5


class Store:
    """A ranking store at a path ("labels.db"), an SQLite URL or a server's ("postgresql+psycopg://host/name").

    Created where there is none (unless `create` is False), migrated where an older tutelage made it. Errors are
    DataError, for whatever a caller hands over, ConfigError for settings, RunError when the database refuses.
    """

    def __init__(self, url: str, create: bool = True) -> None:
        self.url = str(url)
        self._engine = open_database(self.url, create)
        self._reading = self._engine.execution_options(reads_only=True)

    def close(self) -> None:
        """Close the connections; the store can still be used, and opens new ones."""
        self._engine.dispose()

    def _change(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that writes. Two at once may insert the same name on a server: the one that
        came second runs again, and then sees the first one's row."""
        for left in reversed(range(_TRIES)):
            try:
                with self._engine.begin() as c:
                    return work(c)
            except (DBAPIError, TimeoutError) as error:
                again = isinstance(error, IntegrityError | OperationalError) and self._engine.dialect.name != "sqlite"
                if not (again and left) or getattr(error, "connection_invalidated", False):
                    raise RunError(f"{name_of(self._engine)}: cannot write ({first_line(error)})") from error
        raise AssertionError("unreachable")

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._reading.begin() as c:
                yield c
        except (DBAPIError, TimeoutError) as error:
            raise RunError(f"{name_of(self._engine)}: cannot read ({first_line(error)})") from error

    def add_person(self, name: str) -> str:
        """Add a person; returns their key, which is kept only as a hash. DataError for a name that exists."""
        key = people.make_key()
        self._change(lambda c: people.add(c, name, key))
        return key

    def new_key(self, person_id: int) -> str:
        """A new key for a person; the old one ends."""
        return self._change(lambda c: people.renew_key(c, person_id))

    def person_of(self, key: str) -> Person | None:
        """Whose key it is, None if nobody's."""
        with self._read() as c:
            return people.of_key(c, key)

    def person_named(self, name: str) -> Person | None:
        """The person of this name or pseudonym."""
        with self._read() as c:
            return people.by_name(c, name)

    def people(self) -> list[Person]:
        """Everyone, in the order they came."""
        with self._read() as c:
            return people.everyone(c)

    def forget(self, person_id: int, reason: str) -> dict[str, Any]:
        """Delete everything a person gave, and the person. What is kept, and returned: the pseudonym (so that earlier
        exports can be cleared as well), the reason, the number of rows deleted, and when."""
        record = self._change(lambda c: people.forget(c, person_id, reason))
        if self._engine.dialect.name == "sqlite":  # the log still holds the old pages
            raw = self._engine.raw_connection()
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raw.close()
        return record

    def deletions(self) -> list[dict[str, Any]]:
        """The records of forgotten people, oldest first."""
        with self._read() as c:
            return people.all_deletions(c)

    def add_batch(
        self, name: str, guidelines: str = "", per_item: int = 1, overlap: float = 0.1, seed: int = 0
    ) -> None:
        """Add a batch, or change the settings of one. `overlap`: the share of items that everybody gets; it holds for
        items added from then on."""
        self._change(lambda c: items.add_batch(c, name, guidelines, per_item, overlap, seed))

    def batches(self) -> list[BatchInfo]:
        """The batches, oldest first."""
        with self._read() as c:
            return items.all_batches(c)

    def add_items(self, batch: str, rows: Iterable[Mapping[str, Any]], priority: float = 0.0) -> tuple[int, int]:
        """(items added, items that were there already), all rows or, at a DataError, none.

        Rows: {"prompt", "responses"}, a response a string or {"text", ... its origin}, with further columns; or any
        shape that `tutelage reward` reads, whose rankings are recorded, each under its "annotator", as one of the
        people that the item goes to; without one they do not count as such.
        """
        new = [items.as_item(row, f"row {number}") for number, row in enumerate(rows, 1)]
        return self._change(lambda c: items.add_items(c, batch, new, priority))

    def known_prompts(self, batch: str, prompts: Sequence[Prompt]) -> list[bool]:
        """Of each prompt, whether the batch has an item with it already."""
        with self._read() as c:
            return items.known_prompts(c, batch, prompts)

    def set_priorities(self, priorities: Mapping[int, float]) -> None:
        """New priorities of items, by id; those of higher priority are given out first."""
        self._change(lambda c: items.prioritise(c, priorities))

    def next_item(self, batch: str, person_id: int) -> Item | None:
        """What the person should judge next, kept for them for 15 minutes; None when nothing is left for them."""

        def work(c: Connection) -> Item | None:
            people.need(c, person_id)
            found = assignment.next_item(c, items.need_batch(c, batch, lock=True), person_id)
            return None if found is None else items.need_item(c, found)

        return self._change(work)

    def item(self, item_id: int) -> Item:
        """The item of this id."""
        with self._read() as c:
            return items.need_item(c, item_id)

    def record(
        self,
        person_id: int,
        item_id: int,
        kind: str,
        groups: Sequence[Sequence[int]] = (),
        flags: Sequence[str] = (),
        comment: str = "",
        seconds: float = 0.0,
        shown: Sequence[int] = (),
        token: str | None = None,
    ) -> Judgement:
        """Keep a judgement: kind "ranking", "all_bad" (with or without a ranking) or "skip"; groups of answer ids, best
        first; `shown` the answers in the order they were shown.

        A judgement that the person has given the item before stays and is replaced by this one. `token` is the
        client's own id of this submission: sent again, the first one is returned and nothing is written.
        """
        said = judging.Said(kind, groups, flags, comment, seconds, shown, token)
        return self._change(lambda c: judging.record(c, person_id, item_id, said))

    def history(self, person_id: int, batch: str, limit: int = 50) -> list[Judgement]:
        """The person's current judgements, newest first."""
        with self._read() as c:
            return judging.history(c, person_id, items.need_batch(c, batch).id, limit)

    def progress(self, batch: str, person_id: int | None = None) -> Progress:
        """How far the batch and, in it, the person are."""
        with self._read() as c:
            return assignment.progress(c, items.need_batch(c, batch), person_id)

    def add_demonstration(
        self,
        person_id: int,
        prompt: Prompt,
        answer: str,
        origin: Mapping[str, Any] | None = None,
        edited_from: str | None = None,
    ) -> int:
        """Keep an ideal answer that a person wrote, or edited from a model's (`edited_from`); returns its id."""
        return self._change(lambda c: prompts.add_demonstration(c, person_id, prompt, answer, origin, edited_from))

    def add_prompt(self, prompt: Prompt, person_id: int, consent: bool) -> int | None:
        """Keep a prompt; its id, or None when it is not kept: without consent, or when one nearly the same is there."""
        new = prompts.examine(prompt)
        return self._change(lambda c: prompts.add_prompt(c, new, person_id)) if consent is True else None

    def add_vote(
        self,
        person_id: int,
        prompt: Prompt,
        answers: Sequence[Mapping[str, Any]],
        winner: int | None,
        token: str | None = None,
        all_bad: bool = False,
        shown: Sequence[int] = (),
        seconds: float = 0.0,
    ) -> Judgement:
        """A vote between answers {"text", ... origin}, in the batch "chat": the winner's place, None for a tie or where
        all of them are bad. `shown`: their places in the order they were shown."""
        new = items.as_item({"prompt": prompt, "responses": list(answers)}, "vote")
        vote = items.Vote(winner, all_bad, tuple(shown), seconds, token)

        def work(c: Connection) -> Judgement:
            return items.add_vote(c, CHAT, person_id, new, vote)

        return self._change(work)

    def export(self, kind: str = "rankings", batch: str | None = None) -> Iterator[Row]:
        """Rows for `tutelage reward` ("rankings": {"prompt", "responses", "ranking", "annotator", ...}), `tutelage sft`
        ("demonstrations": {"prompt", "completion", ...}) or rollouts ("prompts": {"prompt", "split", ...}).

        The annotator is a pseudonym. Of each person's judgements the current ones; skips and comments stay here.
        """
        return exchange.export(self._read, kind, batch)

    def agreement(self, batch: str | None = None) -> dict[str, Any]:
        """How far people agree, over a batch or all: core.agreement.agreement_report of the current rankings, people by
        name; and "judged", "skipped", "all_bad", "flags", "seconds" (the median) of each person under "people"."""
        with self._read() as c:
            return agreement.report(c, batch)
