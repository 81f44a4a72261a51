"""Prompts that people gave with their consent, and answers that they wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables; the comments on their columns are in feedback/tables.py."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "demonstrations",
        sa.Column("id", number, primary_key=True),
        sa.Column("person_id", number, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("origin", sa.JSON, nullable=False),
        sa.Column("edited_from", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("demonstrations_by_person", "demonstrations", ["person_id"])
    op.create_table(
        "prompts",
        sa.Column("id", number, primary_key=True),
        sa.Column("person_id", number, sa.ForeignKey("people.id"), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("personal", sa.JSON, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("hash"),
        sqlite_autoincrement=True,
    )
    op.create_index("prompts_by_person", "prompts", ["person_id"])
    op.create_table(
        "prompt_bands",
        sa.Column("prompt_id", number, sa.ForeignKey("prompts.id"), primary_key=True),
        sa.Column("band", sa.Integer, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_index("prompt_bands_by_value", "prompt_bands", ["value", "band"])
