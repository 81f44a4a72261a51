"""`tutelage label report|export|key|forget STORE ...`: what is done with a store from the command line.

Each takes the plain words behind the verb and the key=value words, and returns what to print.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tutelage.core.atomic import write_atomic
from tutelage.core.config import build
from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback.agreement import in_words
from tutelage.feedback.rows import Person
from tutelage.feedback.store import Store

Words = Sequence[str]
Values = Mapping[str, Any]


class Options(BaseModel):
    """Base of a command's keys: unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


O = TypeVar("O", bound=Options)  # noqa: E741


class ReportOptions(Options):
    batch: str | None = None
    """One batch alone."""
    json_: bool = Field(False, alias="json")
    """All numbers as JSON."""


class ExportOptions(Options):
    out: str
    """File to write."""
    kind: Literal["rankings", "demonstrations", "prompts"] = "rankings"
    """What: rankings for `reward`, demonstrations for `sft`, prompts for rollouts."""
    batch: str | None = None
    """Rankings of one batch alone."""
    split: Literal["train", "heldout"] | None = None
    """Prompts of one side alone; people are on one side each."""

    @model_validator(mode="after")
    def _split_of_prompts(self) -> ExportOptions:
        if self.split is not None and self.kind != "prompts":
            raise ValueError("split= goes with kind=prompts")
        return self


class KeyOptions(Options):
    name: str
    """Whose key."""
    new: bool = False
    """A new key for someone who is in the store; the old one ends."""


class ForgetOptions(Options):
    person: str
    """Name or pseudonym."""
    reason: str = ""
    """Kept with the record of the deletion; name nobody in it."""


def report(plain: Words, values: Values) -> str:
    """Progress and agreement of a store's batches."""
    store, options = _open(plain, values, ReportOptions, "report labels.db")
    if options.batch is not None:
        store.progress(options.batch)  # an unknown batch is refused, the known ones are named
    names = [batch.name for batch in store.batches() if options.batch in (None, batch.name)]
    if not names:
        return f"{plain[0]}: no batch yet"
    found = {name: store.agreement(name) for name in names}
    if options.json_:
        return json.dumps(found, ensure_ascii=False, indent=1)
    parts = []
    for name, numbers in found.items():
        progress = store.progress(name)
        parts.append(f"batch {name}: {progress.done} of {progress.total} items done\n{in_words(numbers)}")
    return "\n\n".join(parts)


def export(plain: Words, values: Values) -> str:
    """A store's rows as a JSONL file."""
    store, options = _open(plain, values, ExportOptions, "export labels.db out=rankings.jsonl")
    rows = [row for row in store.export(options.kind, options.batch) if options.split in (None, row.get("split"))]
    if not rows:
        raise DataError(f"{plain[0]}: no {options.kind} to export yet; nothing was written")
    write_atomic(Path(options.out), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return f"wrote {options.out}: {len(rows)} {options.kind}"


def key(plain: Words, values: Values) -> str:
    """A key for a new person, or a new one for a person that exists; it is shown this once."""
    store, options = _open(plain, values, KeyOptions, "key labels.db name=Ann", create=True)
    if options.new:
        shown, words = store.new_key(_person(store, options.name).id), "the old one no longer works"
    else:
        shown, words = store.add_person(options.name), "only its hash is kept, so note it now"
    return f"{shown}\nthe key of {options.name}; {words}"


def forget(plain: Words, values: Values) -> str:
    """Delete a person and every row of theirs; that it was done is recorded."""
    store, options = _open(plain, values, ForgetOptions, "forget labels.db person=Ann")
    record = store.forget(_person(store, options.person).id, options.reason)
    counts = ", ".join(f"{number} {table}" for table, number in record["counts"].items() if number)
    return (
        f"deleted: {counts}\nFiles exported before still hold the rows of {record['pseudonym']}: "
        "export again, or take them out there"
    )


COMMANDS: dict[str, Callable[[Words, Values], str]] = {
    "report": report, "export": export, "key": key, "forget": forget,
}  # fmt: skip
"""The first words of `tutelage label` that mean a command on a store; anything else is data to label."""


def _open(plain: Words, values: Values, kind: type[O], example: str, create: bool = False) -> tuple[Store, O]:
    """The store that the one plain word names, and the options."""
    if len(plain) != 1:
        found = f"got {' '.join(plain)!r}" if plain else "got none"
        raise ConfigError(f"expected one store (file or database's address), {found}; e.g. tutelage label {example}")
    options = build(kind, values, f"tutelage label {example.split()[0]}")
    return Store(plain[0], create=create), options


def _person(store: Store, name: str) -> Person:
    found = store.person_named(name)
    if found is None:
        known = ", ".join(person.name for person in store.people()) or "none"
        raise DataError(f"no person {name!r} in this store; there are: {known}")
    return found
