"""Batches and their items: rows of any shape that text.rankings reads, or a prompt with responses, become items."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback import judging
from tutelage.feedback.people import imported, need, sane
from tutelage.feedback.rows import Answer, BatchInfo, Item, Judgement, Prompt, Row, clean, digest
from tutelage.feedback.tables import answers, batches, items, judgements
from tutelage.text.rankings import as_ranking

_NOT_COLUMNS = {"prompt", "responses", "ranking", "p_better", "annotator", "origins", "all_bad"}
_OF_JUDGEMENT = {"flags", "seconds", "at"}  # as our own export writes them, beside an annotator
_ORDERED = ("ranking", "scores", "candidates", "chosen", "rejected")
_AT_ONCE = 500


@dataclass(frozen=True)
class NewItem:
    """A row as it will be stored. `ranking` holds places in `texts`; None: the row only asks for one."""

    prompt: Prompt
    texts: list[str]
    origins: list[Row]
    columns: Row
    ranking: list[list[int]] | None = None
    annotator: str | None = None
    kind: str = "ranking"
    extra: Row = field(default_factory=dict)
    said: judging.Said = judging.Said("ranking")  # flags, seconds and time of the ranking

    @property
    def hash(self) -> str:
        return digest(self.prompt, self.texts)


def as_item(row: Mapping[str, Any], where: str) -> NewItem:
    """A row of any shape of text.rankings.as_ranking, or {"prompt", "responses"} alone; a response may also be
    {"text", ...}, what stands beside the text being its origin. DataError begins `where`."""
    row = {key: value for key, value in row.items() if value is not None}
    responses = row.get("responses")
    origins: list[Row] = []
    if isinstance(responses, list):
        origins = [_origin(answer) for answer in responses]
        row["responses"] = [a["text"] if isinstance(a, Mapping) and "text" in a else a for a in responses]
    ordered = any(key in row for key in _ORDERED)
    if not ordered and isinstance(responses, list):
        row["ranking"] = [list(range(len(responses)))]  # for the check alone
    found = clean(as_ranking(row, where))
    texts, given = found["responses"], found.get("origins")
    if isinstance(given, list) and len(given) == len(texts) and all(isinstance(o, dict) for o in given):
        origins = given  # as our own export writes them
    who = found.get("annotator")
    who = str(who) if isinstance(who, str | int) else None  # a list: several people's joint order
    left_out = _NOT_COLUMNS | (_OF_JUDGEMENT if who and ordered else set())
    return NewItem(
        prompt=found["prompt"],
        texts=texts,
        origins=origins or [{} for _ in texts],
        columns={key: value for key, value in found.items() if key not in left_out},
        ranking=found["ranking"] if ordered else None,
        annotator=who,
        kind="all_bad" if found.get("all_bad") is True else "ranking",
        extra={"p_better": found["p_better"]} if "p_better" in found else {},
        said=_said(found) if who else judging.Said("ranking"),
    )


def _said(row: Row) -> judging.Said:
    """Flags, seconds and time of an exported ranking; what is none of ours is left out."""
    flags, seconds, at = row.get("flags"), row.get("seconds"), row.get("at")
    try:
        when = datetime.fromisoformat(at).timestamp() if isinstance(at, str) else None
    except ValueError:
        when = None
    return judging.Said(
        "ranking",
        flags=flags if isinstance(flags, list) and all(isinstance(flag, str) for flag in flags) else (),
        seconds=float(seconds) if isinstance(seconds, int | float) else 0.0,
        at=when,
    )


def _origin(answer: Any) -> Row:
    if not (isinstance(answer, Mapping) and "text" in answer):
        return {}
    inner = answer.get("origin")
    return clean({**{k: v for k, v in answer.items() if k not in ("text", "origin")},
                  **(inner if isinstance(inner, Mapping) else {})})  # fmt: skip


def add_batch(c: Connection, name: str, guidelines: str, per_item: int, overlap: float, seed: int) -> None:
    """Insert a batch, or give one that exists these settings."""
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise ConfigError(f"batch={name[:40]!r}: expected a name of 1 to 200 printable characters")
    if isinstance(per_item, bool) or not isinstance(per_item, int) or not 1 <= per_item <= 10_000:
        raise ConfigError(f"per_item={per_item!r}: expected a whole number of people, 1 or more")
    if not isinstance(overlap, int | float) or not 0 <= overlap <= 1:
        raise ConfigError(f"overlap={overlap!r}: expected a share between 0 and 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 1 << 63:
        raise ConfigError(f"seed={seed!r}: expected a whole number")
    settings = {"guidelines": clean(guidelines), "per_item": per_item, "overlap": float(overlap), "seed": seed}
    found = c.scalar(select(batches.c.id).where(batches.c.name == clean(name)))
    if found is None:
        c.execute(insert(batches).values(name=clean(name), created_at=time.time(), **settings))
    else:
        c.execute(update(batches).where(batches.c.id == found).values(**settings))


def need_batch(c: Connection, name: str, lock: bool = False) -> Any:
    """The batch's row; DataError names the batches that there are."""
    chosen = select(batches).where(batches.c.name == clean(name))
    row = c.execute(chosen.with_for_update(key_share=True) if lock else chosen).first()
    if row is None:
        known = ", ".join(c.scalars(select(batches.c.name).order_by(batches.c.id))) or "none"
        raise DataError(f"no batch {name[:60]!r} in this store; there are: {known}")
    return row


def all_batches(c: Connection) -> list[BatchInfo]:
    """The batches, oldest first."""
    count = select(func.count()).where(items.c.batch_id == batches.c.id).correlate(batches).scalar_subquery()
    rows = c.execute(select(batches, count.label("items")).order_by(batches.c.id))
    return [BatchInfo(r.name, r.guidelines, r.per_item, r.overlap, r.seed, r.items) for r in rows]


def add_items(c: Connection, batch: str, new: Sequence[NewItem], priority: float = 0.0) -> tuple[int, int]:
    """(items added, items that were there already); their rankings are recorded either way."""
    if not math.isfinite(priority):
        raise ConfigError(f"priority={priority}: expected a finite number")
    found = need_batch(c, batch, lock=True)
    known: dict[str, int] = {}
    wanted = list(dict.fromkeys(item.hash for item in new))
    for some in _pieces(wanted):
        same = select(items.c.hash, items.c.id).where(items.c.batch_id == found.id, items.c.hash.in_(some))
        known.update({row.hash: row.id for row in c.execute(same)})
    first = {item.hash: item for item in reversed(new)}
    fresh = [first[key] for key in wanted if key not in known]
    count = c.scalar(select(func.count()).select_from(items).where(items.c.batch_id == found.id)) or 0
    for some in _pieces(fresh):
        shared = [_is_shared(count + n, found.overlap, found.seed) for n in range(len(some))]
        count += len(some)
        for item, number in zip(some, _insert(c, found.id, some, shared, priority)):
            known[item.hash] = number
    _record_rankings(c, new, known)
    return len(fresh), len(wanted) - len(fresh)


def known_prompts(c: Connection, batch_name: str, prompts: Sequence[Prompt]) -> list[bool]:
    """Of each prompt, whether the batch has an item with it."""
    found = need_batch(c, batch_name)
    known = {digest(prompt) for prompt in c.scalars(select(items.c.prompt).where(items.c.batch_id == found.id))}
    return [digest(clean(prompt)) in known for prompt in prompts]


def _is_shared(n: int, overlap: float, seed: int) -> bool:
    """Whether the n-th item of a batch goes to everybody: the share is met as exactly as whole numbers can, and the
    seed shifts which ones it is."""
    shift = (seed * 0.618033988749895 + 0.5) % 1.0
    return math.floor((n + 1) * overlap + shift) > math.floor(n * overlap + shift)


def _insert(
    c: Connection, batch_id: int, new: Sequence[NewItem], shared: Sequence[bool], priority: float,
    author: int | None = None, keys: Sequence[str] | None = None,
) -> list[int]:  # fmt: skip
    """Insert items with their answers; returns their ids, in order."""
    now = time.time()
    rows = [
        {
            "batch_id": batch_id,
            "author_id": author,
            "hash": keys[n] if keys else item.hash,
            "prompt": item.prompt,
            "columns": item.columns,
            "priority": priority,
            "shared": shared[n],
            "created_at": now,
        }
        for n, item in enumerate(new)
    ]
    numbers = list(c.scalars(insert(items).returning(items.c.id, sort_by_parameter_order=True), rows))
    c.execute(insert(answers), [
        {"item_id": number, "place": place, "text": text, "origin": origin}
        for number, item in zip(numbers, new)
        for place, (text, origin) in enumerate(zip(item.texts, item.origins))
    ])  # fmt: skip
    return numbers


def _own_item(c: Connection, batch_id: int, item: NewItem, author: int) -> int:
    """The item made of a person's own prompt, new if it is not there; other people's equal ones stay apart, so that
    forgetting one person takes nothing from another."""
    key = digest(item.prompt, item.texts, owner=str(author))
    same = items.c.batch_id == batch_id, items.c.hash == key
    found = c.scalar(select(items.c.id).where(*same))
    return int(found) if found is not None else _insert(c, batch_id, [item], [False], 0.0, author, [key])[0]


@dataclass(frozen=True)
class Vote:
    """What a person said of answers to their own prompt; `winner` and `shown` are places in the answers."""

    winner: int | None
    all_bad: bool = False
    shown: tuple[int, ...] = ()
    seconds: float = 0.0
    token: str | None = None


def add_vote(c: Connection, batch: str, person_id: int, new: NewItem, vote: Vote) -> Judgement:
    """A person's vote between answers to their own prompt; the batch is made if need be.

    An answer that reads as the winner does wins with it: the same text is not better than itself.
    """
    winner, places = vote.winner, range(len(new.texts))
    if winner is not None and (isinstance(winner, bool) or winner not in places or vote.all_bad):
        expected = "null where all are bad" if vote.all_bad else f"the place of an answer, 0 to {places[-1]}, or null"
        raise DataError(f"winner={winner!r}: expected {expected}")
    if vote.shown and sorted(vote.shown) != list(places):
        raise DataError(f"shown={list(vote.shown)}: expected each place from 0 to {places[-1]} once")
    need(c, person_id)
    if c.scalar(select(batches.c.id).where(batches.c.name == batch)) is None:
        add_batch(c, batch, "", 1, 0.0, 0)
    number = _own_item(c, need_batch(c, batch).id, new, person_id)
    ids = _ids_of(c, number, new.texts)
    won = [n for n in places if winner is None or new.texts[n] == new.texts[winner]]
    groups = [[ids[n] for n in won], [ids[n] for n in places if n not in won]]
    said = judging.Said(
        "all_bad" if vote.all_bad else "ranking", [] if vote.all_bad else [group for group in groups if group],
        shown=[ids[n] for n in vote.shown or places], seconds=vote.seconds, token=vote.token,
    )  # fmt: skip
    return judging.record(c, person_id, number, said)


def _record_rankings(c: Connection, new: Sequence[NewItem], known: Mapping[str, int]) -> None:
    """The rankings that rows brought with them; one that its person has given the item already is not written again."""
    anonymous: dict[int, int] = {}
    who: dict[tuple[str | None, int], int] = {}
    for item in new:
        if item.ranking is None:
            continue
        number = known[item.hash]
        nth = 0
        if item.annotator is None:
            nth = anonymous[number] = anonymous.get(number, -1) + 1
        key = item.annotator, nth
        if key not in who:
            who[key] = imported(c, item.annotator, nth)
        # the stored answers may stand in another order; of equal texts the n-th is the n-th
        ids = _ids_of(c, number, item.texts)
        groups = tuple(tuple(sorted(ids[place] for place in group)) for group in item.ranking)
        extra = dict(item.extra)
        if "p_better" in extra:
            at = sorted(range(len(ids)), key=ids.__getitem__)
            extra["p_better"] = [[extra["p_better"][i][j] for j in at] for i in at]
        mine = judgements.c.item_id == number, judgements.c.person_id == who[key]
        current = select(judgements).where(*mine, judging.is_current())
        before = judging.read(c, current)
        if before and (before[0].kind, before[0].groups) == (item.kind, groups):
            continue
        if before and item.said.at is not None and item.said.at <= before[0].at.timestamp():
            continue  # an older export does not undo a changed mind
        judging.record(c, who[key], number, replace(item.said, kind=item.kind, groups=groups, extra=extra))


def _ids_of(c: Connection, item_id: int, texts: Sequence[str]) -> list[int]:
    """The answers' ids in the order of `texts`."""
    chosen = select(answers.c.id, answers.c.text).where(answers.c.item_id == item_id).order_by(answers.c.place)
    left: dict[str, list[int]] = {}
    for row in c.execute(chosen):
        left.setdefault(row.text, []).append(row.id)
    return [left[text].pop(0) for text in texts]


def _pieces(values: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(values)
    while piece := list(islice(rest, _AT_ONCE)):
        yield piece


def read_items(c: Connection, numbers: Sequence[int]) -> dict[int, Item]:
    """Items by id; unknown ones are left out."""
    found: dict[int, Item] = {}
    for some in _pieces(numbers):
        by_item: dict[int, list[Answer]] = {}
        chosen = select(answers).where(answers.c.item_id.in_(some)).order_by(answers.c.place)
        for row in c.execute(chosen):
            by_item.setdefault(row.item_id, []).append(Answer(row.id, row.text, row.origin))
        rows = select(items, batches.c.name.label("batch")).select_from(items.join(batches)).where(items.c.id.in_(some))
        for row in c.execute(rows):
            found[row.id] = Item(row.id, row.batch, row.prompt, tuple(by_item.get(row.id, ())), row._mapping["columns"])
    return found


def need_item(c: Connection, item_id: int) -> Item:
    """The item, or DataError."""
    found = read_items(c, [sane(item_id, "item")])
    if not found:
        raise DataError(f"no item {item_id} in this store")
    return found[item_id]


def prioritise(c: Connection, priorities: Mapping[int, float]) -> None:
    """Give items new priorities; higher ones are given out sooner."""
    for number, value in priorities.items():
        if not math.isfinite(value):
            raise ConfigError(f"priority={value} of item {number}: expected a finite number")
        c.execute(update(items).where(items.c.id == sane(number, "item")).values(priority=float(value)))
