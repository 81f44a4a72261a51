"""A PostgreSQL server for the tests, where its programs are installed, and stores on it and in SQLite files."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tutelage.feedback.store import Store


def _program(name):
    found = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))]
    return next((path for path in found if path), None)


class Postgres:
    """A server in a temporary folder, reached through a socket in it; it does not run as root, so it gets a user.
    `safe` as servers are by default: what is committed is on the disk; otherwise quicker."""

    def __init__(self, safe):
        self.settings = [] if safe else ["-c", "fsync=off"]
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.user = None
        if os.geteuid() == 0:
            names = [entry.pw_name for entry in pwd.getpwall()]
            self.user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, self.user)
        self.data, self.server, self.numbers = self.folder / "data", None, itertools.count()
        self._run(_program("initdb"), "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def _run(self, *words):
        subprocess.run(list(map(str, words)), check=True, capture_output=True, user=self.user, cwd=self.folder)

    def start(self):
        words = [_program("postgres"), "-D", self.data, "-k", self.folder, "-c", "listen_addresses=", *self.settings]
        log = (self.folder / "log").open("ab")
        end = time.time() + 60
        while time.time() < end:  # while backends of a killed server still end, a new one gives up at once
            self.server = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, user=self.user)
            while self.server.poll() is None and time.time() < end:
                if self._answers():
                    return
                time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def _answers(self):
        import psycopg

        try:
            psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self):
        """kill -9 of the server and of the processes that it started."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.server.pid)], capture_output=True, text=True)
        for pid in (self.server.pid, *map(int, children.stdout.split())):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.server.wait()

    def stop(self):
        self.server.send_signal(signal.SIGQUIT)  # at once: nothing here is needed again
        self.server.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_url(self):
        """The address of a new, empty schema of the server's database: a store knows only that."""
        import psycopg

        name = f"labels{next(self.numbers)}"
        with psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql+psycopg://postgres@/postgres?host={self.folder}&options=-csearch_path%3D{name}"


def _postgres(safe):
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if _program("postgres") is None or _program("initdb") is None:
        pytest.skip("PostgreSQL's server (postgres, initdb) is not installed")
    server = Postgres(safe)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres():
    """A server; a test that wants it skips where PostgreSQL is not installed."""
    yield from _postgres(safe=False)


@pytest.fixture(scope="module")
def safe_postgres():
    """One that is killed; with its own settings of what is on the disk when."""
    yield from _postgres(safe=True)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """The address of a store that is not there yet, in a file and on a server."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.db")
    return request.getfixturevalue("postgres").new_url()


@pytest.fixture
def store(url):
    """An empty store, in a file and on a server."""
    found = Store(url)
    yield found
    found.close()


@pytest.fixture
def file_store(tmp_path):
    """An empty store in the file labels.db."""
    found = Store(str(tmp_path / "labels.db"))
    yield found
    found.close()
