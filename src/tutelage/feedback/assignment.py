"""Who gets which item: each item goes to the wished number of people, some to everybody, none to one person twice."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, func, insert, or_, select

from tutelage.feedback.judging import is_current
from tutelage.feedback.rows import Progress
from tutelage.feedback.tables import items, judgements, leases, people

LEASE_SECONDS = 15 * 60
"""How long an item that was given out is kept for the person; unused it then goes to somebody else."""


def _judged_by(person_id: int) -> Any:
    """Whether the person has said something of the item, a skip as well."""
    return exists(
        select(judgements.c.id).where(judgements.c.item_id == items.c.id, judgements.c.person_id == person_id)
    )


def _answered() -> Any:
    """How many people have judged the item: those who skipped it, and rankings from files, do not count."""
    return (
        select(func.count())
        .select_from(judgements.join(people, people.c.id == judgements.c.person_id))
        .where(
            judgements.c.item_id == items.c.id,
            judgements.c.kind != "skip",
            people.c.kind == "person",
            is_current(),
        )
        .correlate(items)
        .scalar_subquery()
    )


def _held(person_id: int, now: float) -> Any:
    """How many other people hold the item right now."""
    others = leases.c.item_id == items.c.id, leases.c.person_id != person_id, leases.c.until > now
    return select(func.count()).select_from(leases).where(*others).correlate(items).scalar_subquery()


def _open_to(person_id: int, batch: Any, now: float) -> Any:
    """Whether the item may be given to the person."""
    wanted = or_(items.c.shared, _answered() + _held(person_id, now) < batch.per_item)
    return and_(items.c.batch_id == batch.id, ~_judged_by(person_id), wanted)


def next_item(c: Connection, batch: Any, person_id: int) -> int | None:
    """The item that the person should judge next, leased to them; None when nothing is left for them.

    An item that they hold already comes first (a page that is loaded again shows the same one), then by priority.
    The batch's row must be locked: two people who ask at once must not both get the last free place of an item.
    """
    now = time.time()
    mine = and_(leases.c.item_id == items.c.id, leases.c.person_id == person_id)
    held = select(items.c.id).join(leases, mine).where(items.c.batch_id == batch.id, leases.c.until > now)
    found = c.scalar(held.where(~_judged_by(person_id)).limit(1))
    if found is None:
        order = items.c.priority.desc(), items.c.id
        found = c.scalar(select(items.c.id).where(_open_to(person_id, batch, now)).order_by(*order).limit(1))
    if found is None:
        return None
    c.execute(delete(leases).where(leases.c.item_id == found, leases.c.person_id == person_id))
    c.execute(insert(leases).values(item_id=found, person_id=person_id, until=now + LEASE_SECONDS))
    return int(found)


def progress(c: Connection, batch: Any, person_id: int | None) -> Progress:
    """How far the batch is; without a person, nothing is theirs."""
    inside = items.c.batch_id == batch.id

    def count(*which: Any) -> int:
        return int(c.scalar(select(func.count()).select_from(items).where(*which)) or 0)

    done, total = count(inside, _answered() >= batch.per_item), count(inside)
    if person_id is None:
        return Progress(done, total, 0, 0)
    left = count(_open_to(person_id, batch, time.time()))
    return Progress(done, total, count(inside, _judged_by(person_id)), left)
