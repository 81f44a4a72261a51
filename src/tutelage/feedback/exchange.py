"""What leaves the store: DESIGN.md's JSONL rows, people under pseudonyms, personal data in what they typed masked.

Comments stay in the store. What people wrote on the pages (chat prompts, demonstrations) is masked; the prompts and
answers of imported rows are the operator's own data and leave as they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Connection, select

from tutelage.core.errors import ConfigError
from tutelage.feedback import items as items_
from tutelage.feedback import judging
from tutelage.feedback.personal import mask_personal
from tutelage.feedback.rows import Groups, Item, Row
from tutelage.feedback.tables import demonstrations, items, judgements, people, prompts

EXPORTS = ("rankings", "demonstrations", "prompts")
_AT_ONCE = 500


class Reader(Protocol):
    """Opens a transaction that reads."""

    def __call__(self) -> AbstractContextManager[Connection]: ...


def export(read: Reader, kind: str, batch: str | None) -> Iterator[Row]:
    """The rows of a kind, of one batch or of all; a batch limits rankings only. ConfigError for another kind."""
    makers = {"rankings": _rankings, "demonstrations": _demonstrations, "prompts": _prompts}
    if kind not in makers:
        raise ConfigError(f"kind={kind!r}: expected one of {', '.join(EXPORTS)}")
    # The numbers are read first, then the rows in pieces: no transaction stays open while the caller works.
    with read() as c:
        numbers = list(c.scalars(_numbers(c, kind, batch)))
    return _in_pieces(read, makers[kind], numbers)


def _numbers(c: Connection, kind: str, batch: str | None) -> Any:
    if kind != "rankings":
        table = {"demonstrations": demonstrations, "prompts": prompts}[kind]
        return select(table.c.id).order_by(table.c.id)
    chosen = select(judgements.c.id).join(items, items.c.id == judgements.c.item_id)
    chosen = chosen.where(judgements.c.kind != "skip", judging.is_current())
    if batch is not None:
        chosen = chosen.where(items.c.batch_id == items_.need_batch(c, batch).id)
    return chosen.order_by(judgements.c.item_id, judgements.c.id)


def _in_pieces(read: Reader, make: Any, numbers: list[int]) -> Iterator[Row]:
    for start in range(0, len(numbers), _AT_ONCE):
        with read() as c:
            made = make(c, numbers[start : start + _AT_ONCE])
        yield from made


def _rankings(c: Connection, numbers: list[int]) -> list[Row]:
    chosen = (
        select(judgements, people.c.pseudonym, items.c.author_id)
        .join(people, people.c.id == judgements.c.person_id)
        .join(items, items.c.id == judgements.c.item_id)
        .where(judgements.c.id.in_(numbers))
        .order_by(judgements.c.item_id, judgements.c.id)
    )
    found = c.execute(chosen).all()
    groups = judging.groups_of(c, numbers)
    whole = items_.read_items(c, sorted({row.item_id for row in found}))
    # "all bad" without a ranking orders nothing
    return [_ranking(row, whole[row.item_id], groups[row.id]) for row in found if row.id in groups]


def _ranking(row: Any, item: Item, groups: Groups) -> Row:
    place = {answer.id: number for number, answer in enumerate(item.answers)}
    own = row.author_id is not None
    out: Row = {
        "prompt": _masked(item.prompt) if own else item.prompt,
        "responses": [mask_personal(a.text) if own else a.text for a in item.answers],
        "ranking": [sorted(place[answer] for answer in group) for group in groups],
        **row.extra,
        "annotator": row.pseudonym,
        "at": datetime.fromtimestamp(row.created_at, UTC).isoformat(),
        "seconds": row.seconds,
    }
    if row.kind == "all_bad":
        out["all_bad"] = True
    if row.flags:
        out["flags"] = row.flags
    if any(answer.origin for answer in item.answers):
        out["origins"] = [_masked_values(dict(answer.origin)) for answer in item.answers]
    return {**{key: value for key, value in item.columns.items() if key not in out}, **out}


def _demonstrations(c: Connection, numbers: list[int]) -> list[Row]:
    chosen = select(demonstrations, people.c.pseudonym).join(people).where(demonstrations.c.id.in_(numbers))
    return [
        {
            "prompt": _masked(row.prompt),
            "completion": mask_personal(row.answer),
            "annotator": row.pseudonym,
            **({"origin": _masked_values(row.origin)} if row.origin else {}),
        }
        for row in c.execute(chosen.order_by(demonstrations.c.id))
    ]


def _prompts(c: Connection, numbers: list[int]) -> list[Row]:
    chosen = select(prompts, people.c.pseudonym).join(people).where(prompts.c.id.in_(numbers)).order_by(prompts.c.id)
    return [
        {
            "prompt": _masked(row.prompt),
            "split": row.split,
            "annotator": row.pseudonym,
            **({"personal": row.personal} if row.personal else {}),
        }
        for row in c.execute(chosen)
    ]


def _masked(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return mask_personal(prompt)
    return [{**message, "content": mask_personal(message["content"])} for message in prompt]


def _masked_values(value: Any) -> Any:
    """An origin may name a server by its address."""
    if isinstance(value, str):
        return mask_personal(value)
    if isinstance(value, dict):
        return {key: _masked_values(inner) for key, inner in value.items()}
    return [_masked_values(inner) for inner in value] if isinstance(value, list) else value
