"""What the store gives out and takes in: people, batches, items with their answers, judgements."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tutelage.text.chat import Message, as_messages

Row = dict[str, Any]
Prompt = str | list[Message]
Groups = tuple[tuple[int, ...], ...]
KINDS = ("ranking", "all_bad", "skip")
"""What a person can say of an item; "all_bad" may still carry a ranking."""


@dataclass(frozen=True)
class Person:
    """Someone who judges. `name` is what the person is called in the store; exports carry a pseudonym instead."""

    id: int
    name: str


@dataclass(frozen=True)
class BatchInfo:
    """A batch of items. Each item goes to `per_item` people; a share `overlap` of the items goes to everybody."""

    name: str
    guidelines: str
    per_item: int
    overlap: float
    seed: int
    items: int


@dataclass(frozen=True)
class Answer:
    """One candidate response. `origin` says where it is from (model, run, parameters); {} if unknown."""

    id: int
    text: str
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A prompt with the answers to rank, and the further columns of its row."""

    id: int
    batch: str
    prompt: Prompt
    answers: tuple[Answer, ...]
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What one person said of one item. `groups`: answer ids, best group first; a group is a tie; () for a skip."""

    id: int
    item: int
    person: int
    kind: str
    groups: Groups
    flags: tuple[str, ...]
    comment: str
    seconds: float
    at: datetime
    replaces: int | None


@dataclass(frozen=True)
class Progress:
    """How far a batch is. `done` of `total` items have all the judgements they want; of one person: items judged or
    skipped (`mine`), and those that could be given out to that person now."""

    done: int
    total: int
    mine: int
    left_for_me: int


def clean(value: Any) -> Any:
    """The value as both databases store it: in strings a lone surrogate becomes "?", NUL the replacement sign; numbers
    that are not finite become None.

    PostgreSQL's text knows no NUL and its JSON no NaN, UTF-8 no lone surrogate; Python reads all three from JSON.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    return value


def digest(prompt: Prompt, texts: Sequence[str] = (), owner: str = "") -> str:
    """What makes an item or prompt the same as another: its messages and its answers in any order. `owner` keeps equal
    ones of several people apart."""
    key = [as_messages({"prompt": prompt}), sorted(texts), owner]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
