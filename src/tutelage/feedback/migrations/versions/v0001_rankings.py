"""People, batches of items with their answers, judgements."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _table(name: str, *columns: sa.schema.SchemaItem) -> None:
    op.create_table(name, sa.Column("id", _id(), primary_key=True), *columns, sqlite_autoincrement=True)


def _column(name: str, kind: Any, *rest: sa.schema.SchemaItem) -> sa.Column[Any]:
    return sa.Column(name, kind, *rest, nullable=False)


def upgrade() -> None:
    """Create the tables; the comments on their columns are in feedback/tables.py."""
    _people_and_items()
    _judgements()
    _table("deletions", _column("pseudonym", sa.Text), _column("reason", sa.Text), _column("counts", sa.JSON),
           _column("created_at", sa.Float))  # fmt: skip


def _people_and_items() -> None:
    _table(
        "people",
        _column("name", sa.Text),
        _column("name_key", sa.Text),
        _column("pseudonym", sa.Text),
        sa.Column("key_hash", sa.Text),
        _column("kind", sa.Text),
        _column("created_at", sa.Float),
        *(sa.UniqueConstraint(name) for name in ("name_key", "pseudonym", "key_hash")),
    )
    _table(
        "batches",
        _column("name", sa.Text),
        _column("guidelines", sa.Text),
        _column("per_item", sa.Integer),
        _column("overlap", sa.Float),
        _column("seed", sa.BigInteger),
        _column("created_at", sa.Float),
        sa.UniqueConstraint("name"),
    )
    _table(
        "items",
        _column("batch_id", _id(), sa.ForeignKey("batches.id")),
        sa.Column("author_id", _id(), sa.ForeignKey("people.id")),
        _column("hash", sa.Text),
        _column("prompt", sa.JSON),
        _column("columns", sa.JSON),
        _column("priority", sa.Float),
        _column("shared", sa.Boolean),
        _column("created_at", sa.Float),
        sa.UniqueConstraint("batch_id", "hash", name="items_once"),
    )
    op.create_index("items_in_order", "items", ["batch_id", sa.text("priority DESC"), "id"])
    op.create_index("items_by_author", "items", ["author_id"])
    _table(
        "answers",
        _column("item_id", _id(), sa.ForeignKey("items.id")),
        _column("place", sa.Integer),
        _column("text", sa.Text),
        _column("origin", sa.JSON),
        sa.UniqueConstraint("item_id", "place", name="answers_once"),
    )


def _judgements() -> None:
    _table(
        "judgements",
        _column("item_id", _id(), sa.ForeignKey("items.id")),
        _column("person_id", _id(), sa.ForeignKey("people.id")),
        _column("kind", sa.Text),
        _column("flags", sa.JSON),
        _column("comment", sa.Text),
        _column("seconds", sa.Float),
        _column("shown", sa.JSON),
        _column("extra", sa.JSON),
        sa.Column("token", sa.Text),
        sa.Column("replaces", _id(), sa.ForeignKey("judgements.id")),
        _column("created_at", sa.Float),
        sa.UniqueConstraint("replaces"),
        sa.UniqueConstraint("person_id", "token", name="judgements_token_once"),
    )
    op.create_index("judgements_by_person", "judgements", ["person_id", "item_id"])
    op.create_index("judgements_by_item", "judgements", ["item_id"])
    first = sa.text("replaces IS NULL")
    op.create_index("judgements_first_once", "judgements", ["item_id", "person_id"], unique=True,
                    sqlite_where=first, postgresql_where=first)  # fmt: skip
    op.create_table(
        "places",
        sa.Column("judgement_id", _id(), sa.ForeignKey("judgements.id"), primary_key=True),
        sa.Column("answer_id", _id(), sa.ForeignKey("answers.id"), primary_key=True),
        _column("place", sa.Integer),
    )
    op.create_index("places_by_answer", "places", ["answer_id"])
    op.create_table(
        "leases",
        sa.Column("item_id", _id(), sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("person_id", _id(), sa.ForeignKey("people.id"), primary_key=True),
        _column("until", sa.Float),
    )
    op.create_index("leases_by_person", "leases", ["person_id"])
