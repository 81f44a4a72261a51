"""People and their keys: a key is shown once and kept as a hash; a person can be forgotten."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata

from sqlalchemy import Connection, Table, delete, insert, or_, select, update

from tutelage.core.errors import DataError
from tutelage.feedback.rows import Person, clean
from tutelage.feedback.tables import (
    answers,
    deletions,
    demonstrations,
    insert_one,
    items,
    judgements,
    leases,
    people,
    places,
    prompt_bands,
    prompts,
)

LONGEST_NAME = 100
_PSEUDONYM = re.compile(r"person-[0-9a-f]{12}")


def make_key() -> str:
    """A new key: 192 random bits, so that a plain fast hash of it is safe at rest (a password's would not be)."""
    return secrets.token_urlsafe(24)


def hash_key(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _name_key(name: str) -> str:
    """Names that look alike are one name: nobody may rank as "Ann" beside "ann"."""
    return unicodedata.normalize("NFKC", name).casefold()


def add(c: Connection, name: str, key: str | None, kind: str = "person", pseudonym: str | None = None) -> int:
    """Insert a person, `key` None for one who cannot sign in; DataError for a name that exists or cannot be one."""
    name = " ".join(clean(name).split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise DataError(f"name={name[:40]!r}: expected 1 to {LONGEST_NAME} printable characters")
    if c.scalar(select(people.c.id).where(people.c.name_key == _name_key(name))) is not None:
        raise DataError(f"name={name!r} exists; expected its key, or another name")
    row = {
        "name": name,
        "name_key": _name_key(name),
        # random, not made from the name: nobody can find the name by trying
        "pseudonym": pseudonym or f"person-{secrets.token_hex(6)}",
        "key_hash": hash_key(key) if key else None,
        "kind": kind,
        "created_at": time.time(),
    }
    return insert_one(c, people, row)


def imported(c: Connection, annotator: str | None, number: int) -> int:
    """The person that an imported row's annotator is, new if need be. Without one (None): the placeholder of the
    `number`-th such judgement of one item, as the people behind them are unknown but not the same.

    A file can name someone who has a key here only by the pseudonym that this store gave: what it says under the mere
    name is kept apart, so that no file speaks for them.
    """
    if annotator is None:
        annotator, kind = f"imported {number + 1}", "unknown"
    else:
        kind = "import"
    plain = "".join(letter if letter.isprintable() else "?" for letter in " ".join(clean(annotator).split()))
    annotator = plain[:LONGEST_NAME].strip() or "?"
    found = c.scalar(select(people.c.id).where(people.c.pseudonym == annotator))
    if found is not None:
        return int(found)
    for name in (annotator, f"{annotator[: LONGEST_NAME - 11]} (imported)"):
        row = c.execute(select(people.c.id, people.c.kind).where(people.c.name_key == _name_key(name))).first()
        if row is None:
            # a pseudonym that another store gave stays, so that exports of both name the same person alike
            return add(c, name, None, kind, name if _PSEUDONYM.fullmatch(name) else None)
        if row.kind != "person":
            return int(row.id)
    raise DataError(f"annotator {annotator!r}: the store has people of that name and of {name!r}; rename it")


def need(c: Connection, person_id: int) -> Person:
    """The person, or DataError."""
    row = c.execute(select(people.c.id, people.c.name).where(people.c.id == sane(person_id, "person"))).first()
    if row is None:
        raise DataError(f"no person {person_id} in this store")
    return Person(row.id, row.name)


def sane(number: int, what: str) -> int:
    """The number if it can be an id at all (a web page may send anything), else DataError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 1 << 63:
        raise DataError(f"no {what} {str(number)[:30]} in this store")
    return number


def of_key(c: Connection, key: str) -> Person | None:
    """Whose key it is."""
    row = c.execute(select(people.c.id, people.c.name).where(people.c.key_hash == hash_key(key))).first()
    return None if row is None else Person(row.id, row.name)


def renew_key(c: Connection, person_id: int) -> str:
    """A new key for the person; the old one ends."""
    need(c, person_id)
    key = make_key()
    # whoever has a key judges here, even one whose name came with a file
    c.execute(update(people).where(people.c.id == person_id).values(key_hash=hash_key(key), kind="person"))
    return key


def by_name(c: Connection, name: str) -> Person | None:
    """The person called so, or whose pseudonym it is."""
    name = " ".join(clean(name).split())
    same = or_(people.c.name_key == _name_key(name), people.c.pseudonym == name)
    row = c.execute(select(people.c.id, people.c.name).where(same)).first()
    return None if row is None else Person(row.id, row.name)


def everyone(c: Connection) -> list[Person]:
    """All people, placeholders for unknown ones left out."""
    chosen = select(people.c.id, people.c.name).where(people.c.kind != "unknown").order_by(people.c.id)
    return [Person(row.id, row.name) for row in c.execute(chosen)]


def forget(c: Connection, person_id: int, reason: str) -> dict[str, object]:
    """Delete the person and every row of theirs, items made of their own prompts with all that hangs on them too;
    record that it was done: the pseudonym, the reason, how many rows of each table."""
    need(c, person_id)
    pseudonym = c.scalar(select(people.c.pseudonym).where(people.c.id == person_id))
    own_items = select(items.c.id).where(items.c.author_id == person_id)
    said = or_(judgements.c.person_id == person_id, judgements.c.item_id.in_(own_items))
    own_prompts = select(prompts.c.id).where(prompts.c.person_id == person_id)
    counts: dict[str, int] = {}

    def drop(table: Table, which: object) -> None:
        counts[table.name] = c.execute(delete(table).where(which)).rowcount  # type: ignore[arg-type]

    drop(places, places.c.judgement_id.in_(select(judgements.c.id).where(said)))
    drop(judgements, said)
    drop(leases, or_(leases.c.person_id == person_id, leases.c.item_id.in_(own_items)))
    drop(answers, answers.c.item_id.in_(own_items))
    drop(items, items.c.author_id == person_id)
    drop(demonstrations, demonstrations.c.person_id == person_id)
    drop(prompt_bands, prompt_bands.c.prompt_id.in_(own_prompts))
    drop(prompts, prompts.c.person_id == person_id)
    drop(people, people.c.id == person_id)
    record = {"pseudonym": pseudonym, "reason": clean(reason), "counts": counts, "created_at": time.time()}
    c.execute(insert(deletions).values(record))
    return record


def all_deletions(c: Connection) -> list[dict[str, object]]:
    """The records of forgotten people, oldest first."""
    kept = select(deletions.c.pseudonym, deletions.c.reason, deletions.c.counts, deletions.c.created_at)
    return [dict(row._mapping) for row in c.execute(kept.order_by(deletions.c.id))]
