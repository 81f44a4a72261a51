"""The tables as the newest migration leaves them; tests/feedback compares the two.

Judgements are only ever inserted: a changed mind is a new row whose `replaces` names the old one, so the current
judgement of a person on an item is the one that no other row replaces. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import SchemaItem

metadata = MetaData()
Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only under the name INTEGER


def _table(name: str, *columns: SchemaItem) -> Table:
    # sqlite_autoincrement: an id is never given out again after its row was deleted
    return Table(name, metadata, Column("id", Id, primary_key=True), *columns, sqlite_autoincrement=True)


def insert_one(c: Connection, table: Table, row: Mapping[str, Any]) -> int:
    """Insert a row; returns its id."""
    return int(c.execute(table.insert().values(**row).returning(table.c.id)).scalar_one())


people = _table(
    "people",
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),  # so that "Ann" and "ann" are one name
    Column("pseudonym", Text, nullable=False, unique=True),
    Column("key_hash", Text, unique=True),
    # "person"; "import": an annotator whom an imported file names; "unknown": one whom it does not name
    Column("kind", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
batches = _table(
    "batches",
    Column("name", Text, nullable=False, unique=True),
    Column("guidelines", Text, nullable=False),
    Column("per_item", Integer, nullable=False),
    Column("overlap", Float, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)
items = _table(
    "items",
    Column("batch_id", Id, ForeignKey("batches.id"), nullable=False),
    Column("author_id", Id, ForeignKey("people.id")),  # whose own prompt it is: deleted with that person
    Column("hash", Text, nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("columns", JSON, nullable=False),
    Column("priority", Float, nullable=False),
    Column("shared", Boolean, nullable=False),  # everybody gets it
    Column("created_at", Float, nullable=False),
    UniqueConstraint("batch_id", "hash", name="items_once"),
    Index("items_in_order", "batch_id", text("priority DESC"), "id"),
    Index("items_by_author", "author_id"),
)
answers = _table(
    "answers",
    Column("item_id", Id, ForeignKey("items.id"), nullable=False),
    Column("place", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("origin", JSON, nullable=False),
    UniqueConstraint("item_id", "place", name="answers_once"),
)
judgements = _table(
    "judgements",
    Column("item_id", Id, ForeignKey("items.id"), nullable=False),
    Column("person_id", Id, ForeignKey("people.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("flags", JSON, nullable=False),
    Column("comment", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("shown", JSON, nullable=False),  # answer ids in the order in which the person saw them
    Column("extra", JSON, nullable=False),  # of an imported row: its p_better
    Column("token", Text),  # the client's id of this submission
    Column("replaces", Id, ForeignKey("judgements.id"), unique=True),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("person_id", "token", name="judgements_token_once"),
    Index("judgements_by_person", "person_id", "item_id"),
    Index("judgements_by_item", "item_id"),
)
# Together with the unique `replaces`: one line of judgements for each person and item, never two current ones.
Index(
    "judgements_first_once",
    judgements.c.item_id,
    judgements.c.person_id,
    unique=True,
    sqlite_where=text("replaces IS NULL"),
    postgresql_where=text("replaces IS NULL"),
)
places = Table(
    "places",
    metadata,
    Column("judgement_id", Id, ForeignKey("judgements.id"), primary_key=True),
    Column("answer_id", Id, ForeignKey("answers.id"), primary_key=True),
    Column("place", Integer, nullable=False),  # 0 is the best group; equal places are a tie
    Index("places_by_answer", "answer_id"),
)
leases = Table(
    "leases",
    metadata,
    Column("item_id", Id, ForeignKey("items.id"), primary_key=True),
    Column("person_id", Id, ForeignKey("people.id"), primary_key=True),
    Column("until", Float, nullable=False),
    Index("leases_by_person", "person_id"),
)
deletions = _table(
    "deletions",
    Column("pseudonym", Text, nullable=False),  # so that rows of earlier exports can be found and removed as well
    Column("reason", Text, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)
demonstrations = _table(
    "demonstrations",
    Column("person_id", Id, ForeignKey("people.id"), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("answer", Text, nullable=False),
    Column("origin", JSON, nullable=False),
    Column("edited_from", Text),
    Column("created_at", Float, nullable=False),
    Index("demonstrations_by_person", "person_id"),
)
prompts = _table(
    "prompts",
    Column("person_id", Id, ForeignKey("people.id"), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("personal", JSON, nullable=False),  # kinds of personal data found in it
    Column("split", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("prompts_by_person", "person_id"),
)
prompt_bands = Table(
    "prompt_bands",
    metadata,
    Column("prompt_id", Id, ForeignKey("prompts.id"), primary_key=True),
    Column("band", Integer, primary_key=True),
    Column("value", Text, nullable=False),  # one band of the prompt's MinHash; near-duplicates share some
    Index("prompt_bands_by_value", "value", "band"),
)
