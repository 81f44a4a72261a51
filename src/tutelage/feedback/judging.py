"""Judgements: only ever inserted. What is sent twice is one row; a changed mind is a row that replaces the old one."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, insert, select

from tutelage.core.errors import DataError
from tutelage.feedback.people import need, sane
from tutelage.feedback.rows import KINDS, Groups, Judgement, clean
from tutelage.feedback.tables import answers, insert_one, items, judgements, leases, places

MOST_FLAGS, LONGEST_FLAG, LONGEST_COMMENT, LONGEST_TOKEN = 20, 100, 20_000, 200
_later = judgements.alias("later")


def is_current() -> Any:
    """The condition that no later judgement replaces a row of `judgements`."""
    return ~exists(select(_later.c.id).where(_later.c.replaces == judgements.c.id))


@dataclass(frozen=True)
class Said:
    """What a person sends of an item, not checked yet. `shown`: answer ids in the order they were shown; `extra` and
    `at` (seconds since 1970) come with imported rankings."""

    kind: str
    groups: Sequence[Sequence[int]] = ()
    flags: Sequence[str] = ()
    comment: str = ""
    seconds: float = 0.0
    shown: Sequence[int] = ()
    token: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    at: float | None = None


def record(c: Connection, person_id: int, item_id: int, said: Said) -> Judgement:
    """Insert a judgement, or find the one that was sent under the same token. DataError says what is not one."""
    need(c, person_id)
    # Judgements of one item come one after the other. (NO KEY UPDATE: the foreign keys' own locks do not wait for it.)
    if c.scalar(select(items.c.id).where(items.c.id == sane(item_id, "item")).with_for_update(key_share=True)) is None:
        raise DataError(f"no item {item_id} in this store")
    if (sent := _sent(c, person_id, item_id, said.token)) is not None:
        return sent
    ids = set(c.scalars(select(answers.c.id).where(answers.c.item_id == item_id)))
    groups = _groups(said.kind, said.groups, ids)
    mine = judgements.c.item_id == item_id, judgements.c.person_id == person_id
    previous = c.scalar(select(judgements.c.id).where(*mine, is_current()))
    row = {
        "item_id": item_id,
        "person_id": person_id,
        "kind": said.kind,
        "flags": _flags(said.flags),
        "comment": _comment(said.comment),
        "seconds": _seconds(said.seconds),
        "shown": _shown(said.shown, ids),
        "extra": clean(dict(said.extra)),
        "token": clean(said.token) if said.token is not None else None,
        "replaces": previous,
        "created_at": time.time() if said.at is None else said.at,
    }
    number = insert_one(c, judgements, row)
    ranked = [{"judgement_id": number, "answer_id": a, "place": p} for p, group in enumerate(groups) for a in group]
    if ranked:
        c.execute(insert(places), ranked)
    c.execute(delete(leases).where(leases.c.item_id == item_id, leases.c.person_id == person_id))
    return read(c, select(judgements).where(judgements.c.id == number))[0]


def _sent(c: Connection, person_id: int, item_id: int, token: str | None) -> Judgement | None:
    """What this person has sent under the token already."""
    if token is None:
        return None
    if not isinstance(token, str) or not 0 < len(token) <= LONGEST_TOKEN:
        raise DataError(f"token: expected a string of 1 to {LONGEST_TOKEN} characters")
    mine = judgements.c.person_id == person_id, judgements.c.token == clean(token)
    found = read(c, select(judgements).where(*mine))
    if found and found[0].item != item_id:
        raise DataError(f"token={token!r} was sent with item {found[0].item}; expected a new token for each submission")
    return found[0] if found else None


def _groups(kind: str, groups: Sequence[Sequence[int]], ids: set[int]) -> Groups:
    if kind not in KINDS:
        raise DataError(f"kind={str(kind)[:40]!r}: expected {', '.join(KINDS)}")
    try:
        found = tuple(tuple(sorted(group)) for group in groups if group)
        flat = [answer for group in found for answer in group]
        complete = len(flat) == len(ids) and set(flat) == ids
    except TypeError:
        raise DataError("groups: expected lists of answer ids, the best group first") from None
    if kind == "skip" and flat:
        raise DataError("groups: a skip ranks nothing; expected none")
    if not complete and (flat or kind == "ranking"):
        wanted = ", ".join(map(str, sorted(ids)))
        raise DataError(f"groups: expected each answer of the item exactly once ({wanted}), got {str(flat)[:200]}")
    return found


def _shown(shown: Sequence[int], ids: set[int]) -> list[int]:
    if not isinstance(shown, list | tuple) or not all(isinstance(a, int) and a in ids for a in shown):
        raise DataError("shown: expected ids of the item's answers")
    return list(shown)


def _flags(flags: Sequence[str]) -> list[str]:
    fine = isinstance(flags, list | tuple) and len(flags) <= MOST_FLAGS
    if not fine or not all(isinstance(flag, str) and 0 < len(flag) <= LONGEST_FLAG for flag in flags):
        raise DataError(f"flags: expected at most {MOST_FLAGS} strings of 1 to {LONGEST_FLAG} characters")
    return list(dict.fromkeys(clean(list(flags))))


def _comment(comment: str) -> str:
    if not isinstance(comment, str) or len(comment) > LONGEST_COMMENT:
        raise DataError(f"comment: expected a string of at most {LONGEST_COMMENT} characters")
    return str(clean(comment))


def _seconds(seconds: float) -> float:
    fine = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not fine or not math.isfinite(seconds) or seconds < 0:
        raise DataError(f"seconds={str(seconds)[:40]}: expected a finite number, 0 or more")
    return float(seconds)


def read(c: Connection, chosen: Select[Any]) -> list[Judgement]:
    """The judgements of a selection of whole rows, in its order."""
    rows = c.execute(chosen).all()
    groups = groups_of(c, [row.id for row in rows])
    return [
        Judgement(
            id=row.id,
            item=row.item_id,
            person=row.person_id,
            kind=row.kind,
            groups=groups.get(row.id, ()),
            flags=tuple(row.flags),
            comment=row.comment,
            seconds=row.seconds,
            at=datetime.fromtimestamp(row.created_at, UTC),
            replaces=row.replaces,
        )
        for row in rows
    ]


def groups_of(c: Connection, numbers: Sequence[int], at_once: int = 500) -> dict[int, Groups]:
    """The groups of answer ids of judgements; those without a ranking are left out."""
    found: dict[int, dict[int, list[int]]] = {}
    for start in range(0, len(numbers), at_once):
        some = places.c.judgement_id.in_(numbers[start : start + at_once])
        for row in c.execute(select(places).where(some).order_by(places.c.place, places.c.answer_id)):
            found.setdefault(row.judgement_id, {}).setdefault(row.place, []).append(row.answer_id)
    return {number: tuple(map(tuple, groups.values())) for number, groups in found.items()}


def history(c: Connection, person_id: int, batch_id: int, limit: int) -> list[Judgement]:
    """The person's current judgements of a batch, newest first."""
    chosen = (
        select(judgements)
        .join(items, items.c.id == judgements.c.item_id)
        .where(judgements.c.person_id == person_id, items.c.batch_id == batch_id, is_current())
        .order_by(judgements.c.id.desc())
        .limit(limit)
    )
    return read(c, chosen)
