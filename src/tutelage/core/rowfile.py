"""A file of rows that grows in order, and goes on after a kill: nothing lost, repeated, or overwritten silently.

`FILE.jsonl` holds one row a line, each with its number as `index`. `.FILE.jsonl.manifest.json` beside it says what it
was made of; hidden, as a folder of .json files may be somebody's data.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tutelage.core.atomic import unwritable, write_atomic
from tutelage.core.config import digest
from tutelage.core.errors import RunError
from tutelage.core.lineage import environment

Row = dict[str, Any]


class RowFile:
    """`identity`: all that decides about the rows (parameters, hashes of inputs); another identity is refused."""

    def __init__(self, path: str | Path, kind: str, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.kind, self.identity = kind, json.loads(json.dumps(dict(identity)))
        self.rows = self.errors = 0
        self.facts: dict[str, Any] = {}
        self._manifest_path = self.path.with_name(f".{self.path.name}.manifest.json")
        self._lock: IO[str] | None = None
        self._file: IO[bytes] | None = None
        self._began = time.perf_counter()

    def open(self, total: int, batch: int = 1, restart: bool = False) -> bool:
        """Claim the file and count its rows into `rows`; True if it was finished already.

        Of an unfinished file a half-written last line is cut off, and so are rows beyond a multiple of `batch` unless
        all `total` are there: they are then made again in the company they had. Nothing is written yet where there is
        no file. RunError for a file of another identity (`restart` moves it aside), one that is no such file, or one
        in use.
        """
        self._claim()
        try:
            return self._open(total, batch, restart)
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = lock.open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunError(f"{self.path}: being written by another process; wait or choose another out=") from None
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _open(self, total: int, batch: int, restart: bool) -> bool:
        if self.path.is_dir():
            raise RunError(f"{self.path}: a folder; expected the name of a file to write")
        size = self.path.stat().st_size if self.path.exists() else 0
        if not size:
            return False
        old = self._manifest()
        if old.get("identity") != self.identity or old.get("kind") != self.kind:
            if not restart:
                raise RunError(
                    f"{self.path}: {self._difference(old)}; choose another out=, or give restart=true to move it aside"
                )
            self._move_aside()
            return False
        self.facts = dict(old.get("facts", {}))
        finished = old["status"] == "finished"
        if finished and size != old.get("bytes"):
            raise RunError(f"{self.path}: changed since it was finished; choose another out=, or move it away")
        self._keep(total, 1 if finished else batch)
        return finished

    def _manifest(self) -> dict[str, Any]:
        try:
            found = json.loads(self._manifest_path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) and {"identity", "status"} <= set(found) else {}
        except (OSError, ValueError):
            return {}

    def _difference(self, old: Mapping[str, Any]) -> str:
        """What makes the file another one, in words."""
        if not old:
            return f"is there already, and no unfinished `{self.kind}` wrote it ({self._manifest_path.name} is missing)"
        then, words = old.get("identity", {}), []
        for key in sorted({*then, *self.identity}):
            before, now = then.get(key), self.identity.get(key)
            if before == now:
                continue
            if isinstance(before, Mapping) and isinstance(now, Mapping):
                parts = sorted(part for part in {*before, *now} if before.get(part) != now.get(part))
                words.append(f"{key}: other {', '.join(parts)}")
            elif isinstance(before, Mapping) or isinstance(now, Mapping):
                words.append(f"another {key}")
            else:
                words.append(f"{key}={before!r} then and {now!r} now")
        return f"was begun with other inputs or parameters ({', '.join(words) or old.get('kind')})"

    def _move_aside(self) -> None:
        target = self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        self.path.rename(target)
        print(f"{self.path}: the older file is moved to {target.name}", file=sys.stderr)

    def _keep(self, total: int, batch: int) -> None:
        """Count the whole lines, and cut the file after the last full batch of them."""
        end, good = 0, (0, 0, 0)  # bytes; bytes, rows and errors up to the last full batch
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    right = isinstance(row, dict) and row.get("index") == self.rows
                except ValueError:
                    right = False
                if not right:
                    words = f"{self.path}:{self.rows + 1}: not the row that belongs there (index {self.rows})"
                    raise RunError(f"{words}; the file was changed, choose another out=")
                end += len(line)
                self.rows += 1
                self.errors += bool(row.get("error"))
                if self.rows % batch == 0 or self.rows == total:
                    good = end, self.rows, self.errors
        end, self.rows, self.errors = good
        if end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def begin(self, **facts: Any) -> None:
        """Write the manifest, and open the file for appending.

        `facts` (device, threads ...) that differ from those it was begun with are said on stderr: the last bits, and
        with them a sampled word, may differ from an unbroken run's.
        """
        for key, value in facts.items():
            if self.rows and self.facts.get(key) not in (None, value):
                print(f"{self.path}: goes on with {key}={value}, begun with {self.facts[key]}", file=sys.stderr)
        self.facts.update(facts)
        self._write_manifest("running")
        try:
            self._file = self.path.open("ab")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, each with the next `index`, and wait until they are on the disk."""
        assert self._file is not None, "begin() comes first"
        text = "".join(_line({"index": self.rows + i, **row}) for i, row in enumerate(rows))
        try:
            self._file.write(text.encode("utf-8", "replace"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.rows += len(rows)
        self.errors += sum(bool(row.get("error")) for row in rows)

    def finish(self) -> None:
        """All rows are there."""
        self._write_manifest("finished", bytes=self.path.stat().st_size)

    def _write_manifest(self, status: str, **more: Any) -> None:
        known = {"kind": self.kind, "status": status, "fingerprint": digest(self.identity), "identity": self.identity}
        counted = {"rows": self.rows, "errors": self.errors, "seconds": round(time.perf_counter() - self._began, 2)}
        manifest = {**known, "facts": self.facts, **counted, **more, **environment()}
        write_atomic(self._manifest_path, json.dumps(manifest, indent=1, ensure_ascii=False))

    def close(self) -> None:
        """Release the file; what is written stays, and can be gone on with."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"  # a parquet column may hold dates


def error_rows(path: Path, count: int = 1) -> Iterable[str]:
    """The first few rows of a file that have an `error`, in words."""
    found = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            if found < count and '"error"' in line and (row := json.loads(line)).get("error"):
                found += 1
                yield f"row {row['index']}: {row['error']}"
