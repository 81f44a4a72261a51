"""A run directory: resolved config, manifest with lineage, metrics, samples, checkpoints, model, summary.

Nothing in it is overwritten silently: a finished run with the same fingerprint is reused, an unfinished one is resumed,
and a directory made by another configuration is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tomli_w

from tutelage.core.config import digest
from tutelage.core.errors import RunError
from tutelage.core.events import EventWriter
from tutelage.core.lineage import environment, parent_entry, read_manifest
from tutelage.core.records import BadRows

__all__ = ["RunDir", "parent_entry", "read_jsonl_tolerant", "read_manifest", "write_atomic"]


def write_atomic(path: Path, text: str) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one, never half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot write ({error.strerror}); free space or choose another out=")


def _drop_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_drop_none(v) for v in value]
    return value


KEPT = ("metrics.jsonl", "samples.jsonl", "summary.json", "model", "checkpoints")
"""Where a run's work lies: a directory in which all of these are absent or empty has nothing to lose."""


class RunDir:
    """One stage's directory, locked while it is being written.

    `fingerprint` = hash of the resolved config and of the parents' hashes: equal fingerprint means equal result.
    """

    def __init__(self, path: str | Path, kind: str, config: Mapping[str, Any], parents: Sequence[str | Path] = ()):
        self.path = Path(path)
        self.kind = kind
        self.config = _drop_none({k: v for k, v in dict(config).items() if k != "out"})
        self.parents = [parent_entry(p) for p in parents]
        self.bad_rows = BadRows(self.config.pop("on_bad_row", "stop"))  # what is skipped is no part of the identity
        hashes = [p["hash"] for p in self.parents]
        self.fingerprint = digest({"kind": kind, "config": self.config, "parents": hashes})
        self._manifest: dict[str, Any] = {}
        self._began = time.perf_counter()
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._events: EventWriter | None = None

    def open(self, restart: bool = False) -> str:
        """Claim the directory. Returns "finished", "resume" or "fresh"; raises RunError if it is in use or another's.

        A directory of another configuration is refused unless `restart` (which moves it aside), or unless that run
        broke off before it had anything to keep.
        """
        self._claim()
        try:
            found = self._open(restart)
        except BaseException:
            self.close()
            raise
        return found

    def _claim(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunError(f"{self.path}: in use by another process; wait for it or choose another out=") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be used as a run directory ({error.strerror})") from None

    def _open(self, restart: bool) -> str:
        old = read_manifest(self.path)
        if old is None:
            foreign = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if set(foreign) - {"config.toml"}:
                raise RunError(f"{self.path}: not empty and not a run directory; choose another out=")
        elif old["fingerprint"] != self.fingerprint:
            worthless = old["status"] != "finished" and self._nothing_to_keep()
            if not restart and not worthless:
                raise RunError(
                    f"{self.path}: holds a {old['kind']} run with another configuration or other inputs; "
                    "choose another out=, or give restart=true to move it aside"
                )
            if not worthless or self._others():
                self._move_aside()
        elif old["status"] == "finished":
            self._manifest = old
            return "finished"
        else:
            self._begin(old)
            return "resume"
        write_atomic(self.path / "config.toml", tomli_w.dumps(self.config))
        self._begin({})
        return "fresh"

    def _nothing_to_keep(self) -> bool:
        for name in KEPT:
            path = self.path / name
            if path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir()):
                return False
            if path.is_file() and path.stat().st_size:
                return False
        return True

    def _others(self) -> list[str]:
        known = {"config.toml", "manifest.json", "events", *KEPT}
        return [p.name for p in self.path.iterdir() if not p.name.startswith(".") and p.name not in known]

    def _move_aside(self) -> None:
        target = self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        target.mkdir()
        for entry in self.path.iterdir():
            if entry.name != ".lock":
                shutil.move(str(entry), target / entry.name)

    def _begin(self, old: Mapping[str, Any]) -> None:
        self._began = time.perf_counter() - float(old.get("seconds", 0.0))
        self._manifest = {
            "kind": self.kind,
            "status": "running",
            "fingerprint": self.fingerprint,
            "parents": self.parents,
            "seed": self.config.get("seed"),
            **environment(),
            "started": old.get("started") or _now(),
            **{k: old[k] for k in ("device", "dtype", "threads", "warnings") if k in old},
        }
        self._write_manifest("running")

    def _write_manifest(self, status: str) -> None:
        self._manifest.update(status=status, updated=_now(), seconds=round(time.perf_counter() - self._began, 2))
        if self.bad_rows.count:
            self._manifest["bad_rows"] = self.bad_rows.as_row()
        write_atomic(self.path / "manifest.json", json.dumps(self._manifest, indent=1, ensure_ascii=False))

    def note(self, **facts: Any) -> None:
        """Write facts such as device, dtype and threads into the manifest.

        One that differs from what the run began with becomes a warning there and on stderr: the resumed result may
        differ from an unbroken run's in the last bits.
        """
        for key, value in facts.items():
            before = self._manifest.get(key)
            if before not in (None, value):
                warning = f"resumed with {key}={value}, begun with {before}: no longer bit-equal to an unbroken run"
                self._manifest.setdefault("warnings", []).append(warning)
                print(f"{self.path}: {warning}", file=sys.stderr)
        self._manifest.update(facts)
        self._write_manifest(str(self._manifest.get("status", "running")))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl and its numbers to the TensorBoard events, and flush them."""
        try:
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
                self._events = EventWriter(self.path / "events", int(row.get("step", 0)))
            self._metrics.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
            self._metrics.flush()
            if self._events:
                self._events.add(row)
        except OSError as error:
            raise _unwritable(self.path / "metrics.jsonl", error) from error

    def truncate_metrics(self, last_step: int) -> None:
        """Drop metrics and samples after `last_step`: on resume the steps since the checkpoint are run again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.path / name
            if path.exists():
                rows = [row for row in read_jsonl_tolerant(path) if row.get("step", 0) <= last_step]
                write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl."""
        path = self.path / "samples.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise _unwritable(path, error) from error

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Write summary.json, mark the run finished and release the lock."""
        write_atomic(self.path / "summary.json", json.dumps(dict(summary), indent=1, ensure_ascii=False))
        self._write_manifest("finished")
        self.close()
        return self.path

    def fail(self, error: BaseException, status: str = "failed") -> None:
        """Mark the run with `status` and the error's first line; it stays resumable."""
        words = (str(error) or type(error).__name__).splitlines()[0]
        self._manifest["error"] = f"{type(error).__name__}: {words}"
        with contextlib.suppress(RunError):  # a full disk must not hide the error itself
            self._write_manifest(status)

    def close(self) -> None:
        """Release the lock and files; the run stays resumable."""
        for file in (self._metrics, self._events, self._lock):
            if file is not None:
                with contextlib.suppress(OSError):  # of a full disk, whose error was raised at the write
                    file.close()
        self._metrics = self._events = self._lock = None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def read_jsonl_tolerant(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of our own log; a last line cut by a kill is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
