"""Opening a store's database: SQLite by path, anything else by URL; created or migrated when it is older."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback.tables import metadata

VERSIONS = "tutelage_version"
_LOCK = 7_482_117  # PostgreSQL's advisory lock of those who migrate; any number that nobody else uses
_SCHEME = re.compile(r"[a-z][a-z0-9]*(\+[a-z0-9_]+)?://", re.IGNORECASE)


def open_database(url: str, create: bool = True) -> Engine:
    """An engine on the store at `url`, a path of an SQLite file or an SQLAlchemy URL, with the newest tables.

    SQLite: WAL, so that readers never wait for the writer, and synchronous=FULL, so that what was committed is on the
    disk. ConfigError for an address that is none; DataError for a file that is no store, or one of a newer tutelage.
    """
    engine = _sqlite(url, create) if _is_sqlite(url) else _server(url)
    name = name_of(engine)
    try:
        _migrate(engine, name, create)
        if engine.dialect.name == "sqlite":
            _write_ahead(engine)
    except (DBAPIError, sqlite3.Error) as error:
        engine.dispose()
        raise DataError(f"{name}: cannot be opened as a store ({first_line(error)})") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def name_of(engine: Engine) -> str:
    """The database as messages call it: its path, or its address without the password."""
    if engine.dialect.name == "sqlite":
        return str(engine.url.database)
    return engine.url.render_as_string(hide_password=True)


def first_line(error: Exception) -> str:
    """What the database said, without the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _is_sqlite(url: str) -> bool:
    return not _SCHEME.match(url) or url.startswith("sqlite")


def _sqlite(url: str, create: bool) -> Engine:
    path = make_url(url).database if _SCHEME.match(url) else url
    if not path or path == ":memory:":
        raise ConfigError(f"{url!r}: a store is a file or a server, e.g. labels.db or postgresql+psycopg://host/name")
    if Path(path).is_dir():
        raise DataError(f"{path}: a folder; expected a file, e.g. {path}/labels.db")
    if not create and not Path(path).is_file():
        raise DataError(f"{path}: no such store; expected the file that `tutelage label` wrote, or a server's address")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # 30 s: how long a writer waits for another process's transaction before it is an error
    waits = {"timeout": 30}
    engine = create_engine(URL.create("sqlite", database=path), connect_args=waits, pool_size=16, max_overflow=48)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: we do, in _begin
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _write_ahead(engine: Engine) -> None:
    """Switch the file to a write-ahead log; it keeps that by itself. The switch needs the file alone for a moment and
    does not wait for others by itself."""
    raw = engine.raw_connection()
    try:
        for left in reversed(range(100)):
            try:
                raw.cursor().execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:
                if not left:
                    raise
                time.sleep(0.1)
    finally:
        raw.close()


def _begin(connection: Connection) -> None:
    # A transaction that reads and then writes fails at once when another one wrote in between; a writer therefore
    # takes the lock at its beginning, and waits for it there.
    reads = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _server(url: str) -> Engine:
    try:
        return create_engine(url, pool_size=16, max_overflow=48, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError) as error:
        # the address itself is not repeated: it may hold a password
        raise ConfigError(f"not a database's address ({error}); e.g. postgresql+psycopg://host/name") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"{url.split(':')[0]}://... needs a driver: pip install {error.name}[binary]") from error


def _alembic(connection: Connection) -> Config:
    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSIONS}).get_current_revision()


def _migrate(engine: Engine, name: str, create: bool) -> None:
    """Bring the tables to the newest version, in one transaction; several processes may come at once."""
    with engine.connect().execution_options(reads_only=True) as connection:
        scripts = ScriptDirectory.from_config(_alembic(connection))
        if _current(connection) == scripts.get_current_head():
            return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found, known = _current(connection), [script.revision for script in scripts.walk_revisions()]
        if found is not None and found not in known:
            raise DataError(
                f"{name}: its tables are version {found}, which this tutelage does not know (it knows up to "
                f"{known[0]}): a newer one wrote it. Install that one; nothing was changed"
            )
        tables = set(inspect(connection).get_table_names()) - {VERSIONS}
        foreign = tables if engine.dialect.name == "sqlite" else tables & set(metadata.tables)
        if found is None and foreign:
            raise DataError(
                f"{name}: a database with tables of something else ({', '.join(sorted(foreign)[:3])}); "
                "expected a store or a new file"
            )
        if found is None and not create:
            raise DataError(f"{name}: no store in this database; expected one that `tutelage label` wrote")
        command.upgrade(_alembic(connection), "head")
