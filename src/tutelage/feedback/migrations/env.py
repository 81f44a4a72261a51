"""Alembic's entry: runs the migrations on the connection, and in the transaction, that feedback/database.py opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="tutelage_version")
context.run_migrations()
