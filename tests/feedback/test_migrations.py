"""Databases of other versions: older ones are migrated, newer ones and foreign files refused, none harmed."""

import sqlite3
import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback.database import VERSIONS, _alembic
from tutelage.feedback.store import Store
from tutelage.feedback.tables import metadata

VERSION_1 = [
    "INSERT INTO people VALUES (1, 'Ann', 'ann', 'person-000000000001', 'x', 'person', 1.0)",
    "INSERT INTO batches VALUES (1, 'b', 'Be kind.', 2, 0.5, 7, 1.0)",
    "INSERT INTO items VALUES (1, 1, NULL, 'h', '\"Who?\"', '{\"topic\": 3}', 0.0, 1, 1.0)",
    "INSERT INTO answers VALUES (1, 1, 0, 'x', '{}'), (2, 1, 1, 'y', '{\"model\": \"m\"}')",
    "INSERT INTO judgements VALUES (1, 1, 1, 'ranking', '[\"odd\"]', 'well', 2.5, '[2, 1]', '{}', 't', NULL, 5.0)",
    "INSERT INTO places VALUES (1, 2, 0), (1, 1, 1)",
]
"""A store as version 1 left it."""


def old_store(path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        command.upgrade(_alembic(connection), "0001")
        for statement in VERSION_1:
            connection.exec_driver_sql(statement)
    engine.dispose()


def version(path):
    return sqlite3.connect(path).execute(f"SELECT version_num FROM {VERSIONS}").fetchall()


def test_a_store_of_version_1_is_migrated(tmp_path):
    path = tmp_path / "labels.db"
    old_store(path)
    assert version(path) == [("0001",)]
    store = Store(str(path))
    assert version(path) == [("0002",)]
    (said,) = store.history(1, "b")
    assert said.groups == ((2,), (1,)) and said.flags == ("odd",) and said.comment == "well"
    assert store.item(1).answers[1].origin == {"model": "m"} and store.batches()[0].guidelines == "Be kind."
    assert store.add_prompt("What?", 1, consent=True) == 1
    store.close()
    assert Store(str(path)).people()[0].name == "Ann"  # opened again, nothing to do


def test_the_migrations_make_the_tables_that_the_code_expects(tmp_path):
    Store(str(tmp_path / "labels.db")).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'labels.db'}")
    with engine.connect() as connection:
        # alembic cannot compare an index that holds an expression (priority DESC); its name is compared below
        kept = {"include_object": lambda _, name, *rest: name != "items_in_order"}
        context = MigrationContext.configure(connection, opts={"version_table": VERSIONS, "compare_type": True, **kept})
        assert compare_metadata(context, metadata) == []
        found, wanted = inspect(connection), metadata.tables
        for name, table in wanted.items():
            assert {i["name"] for i in found.get_indexes(name)} >= {i.name for i in table.indexes}
            assert len(found.get_foreign_keys(name)) == len(table.foreign_keys)
            assert {c["name"]: c["nullable"] for c in found.get_columns(name)} == {c.name: c.nullable for c in table.c}


def test_a_newer_store_is_refused_by_name_and_left_alone(tmp_path):
    path = tmp_path / "labels.db"
    Store(str(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSIONS} SET version_num = '0077'")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"labels\.db: its tables are version 0077.*up to 0002.*newer"):
        Store(str(path))
    assert path.read_bytes() == before


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE cookies (x)")
    text = tmp_path / "rows.jsonl"
    text.write_text('{"prompt": "x"}\n' * 200)
    for path, words in ((other, "something else .cookies"), (text, "not a database"), (tmp_path, "a folder")):
        before = None if path.is_dir() else path.read_bytes()
        with pytest.raises(DataError, match=words):
            Store(str(path))
        assert path.is_dir() or path.read_bytes() == before
    for url in ("sqlite://", "sqlite:///:memory:", "", "oracle+nothing://u:secret@h/d"):
        with pytest.raises(ConfigError) as caught:
            Store(url)
        assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="no such store"):
        Store(str(tmp_path / "new.db"), create=False)
    assert not (tmp_path / "new.db").exists()
    with pytest.raises(DataError, match="cannot be opened") as caught:
        Store("postgresql+psycopg://ann:secret@127.0.0.1:1/labels")
    assert "secret" not in str(caught.value)


def test_eight_open_a_new_store_at_once(tmp_path):
    faults, path = [], str(tmp_path / "deep" / "labels.db")

    def work(n):
        try:
            Store(path).add_person(f"p{n}")
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults and len(Store(path).people()) == 8
    assert sqlite3.connect(path).execute("PRAGMA journal_mode").fetchone() == ("wal",)
