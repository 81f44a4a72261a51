"""A run directory: resolved config, manifest with lineage, metrics, samples, checkpoints, model, summary.

Nothing in it is overwritten silently: a finished run with the same fingerprint is reused, an unfinished one is resumed,
and a directory made by another configuration is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import tomli_w

from tutelage.core.atomic import sweep, unwritable, write_atomic
from tutelage.core.config import digest
from tutelage.core.errors import RunError
from tutelage.core.events import EventWriter
from tutelage.core.lineage import environment, parent_entry, read_manifest
from tutelage.core.records import BadRows

__all__ = ["RunDir", "parent_entry", "read_jsonl_tolerant", "read_manifest"]


def _drop_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_drop_none(v) for v in value]
    return value


def _place(identity: dict[str, Any], key: str) -> tuple[Any, Any]:
    """Where "key", or of a list within it "key.1.0", stands: (the table or list, the key or number in it)."""
    place: Any = identity
    name, *numbers = key.split(".")
    path: list[Any] = [name, *map(int, numbers)]
    for one in path[:-1]:
        place = place[one]
    return place, path[-1]


LOGS = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
"""Rows with a step, which a resumed run takes back as far as it goes back."""
PARTS = "parts"
"""Folder of what a stage has finished of its parts, each a folder of its own; it goes when the run is finished."""
KEPT = (*LOGS, "summary.json", "model", "checkpoints", PARTS)
"""Where a run's work lies: a directory in which all of these are absent or empty has nothing to lose."""
UNBOUND = ("guard", "keep_checkpoints", "workers", "parallel")
"""Keys that are no part of the identity: how a run is looked after, by how many, and how they share the work may be
changed when it goes on."""
BEGUN = ("python", "versions", "commit", "cpu")
"""What else decides about the last bits: a run resumed on another machine or code is told so."""


class RunDir:
    """One stage's directory, locked while it is being written.

    `fingerprint` = hash of the resolved config and of the inputs' hashes: equal fingerprint means equal result.
    `inputs` maps keys of the config ("key.0" within a list) to the files or run directories they name: of these the
    contents count, not the place, so a folder of runs may be moved or named by another path.
    """

    def __init__(self, path: str | Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str] | None = None):
        self.path = Path(path)
        self.kind = kind
        self.config = _drop_none({k: v for k, v in dict(config).items() if k != "out"})
        self.parents: list[dict[str, str]] = []
        self.bad_rows = BadRows(self.config.pop("on_bad_row", "stop"))  # what is skipped is no part of the identity
        identity = _drop_none({k: v for k, v in self.config.items() if k not in UNBOUND})
        for key, given in (inputs or {}).items():
            self.parents.append(parent_entry(given))
            place, last = _place(identity, key)
            function = str(place[last] if isinstance(place, list) else place.get(last)).removeprefix(given)
            place[last] = self.parents[-1]["hash"] + function  # of file.py:function
        self.fingerprint = digest({"kind": kind, "config": identity})
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
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back, however we end
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {platform.node()}")
            self._lock.flush()
        except BlockingIOError:
            holder = (self.path / ".lock").read_text(encoding="utf-8")
            self.close()
            words = f"in use by another process{f' ({holder})' if holder else ''}"
            raise RunError(f"{self.path}: {words}; wait for it or choose another out=") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be used as a run directory ({error.strerror})") from None

    def _open(self, restart: bool) -> str:
        sweep(self.path)
        old = read_manifest(self.path)
        if old is None:
            foreign = sorted({p.name for p in self.path.iterdir() if not p.name.startswith(".")} - {"config.toml"})
            if foreign:
                raise RunError(f"{self.path}: holds {foreign[0]} and is no run directory; choose another out=")
        elif old["fingerprint"] != self.fingerprint:
            worthless = old["status"] != "finished" and self._nothing_to_keep()
            if not restart and not worthless:
                raise RunError(
                    f"{self.path}: holds a {old['kind']} run with another configuration or other inputs; "
                    "choose another out=, or give restart=true to move it aside"
                )
            if not worthless or self._others():
                self._move_aside()
        elif old["status"] == "finished" and (self.path / "summary.json").is_file():
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
        """Rename the whole directory (a kill then leaves no half of it that looks like a run) and claim a new one."""
        path = self.path.resolve()
        target = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        try:
            path.rename(target)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be moved aside ({error.strerror}); choose another out=") from error
        print(f"{self.path}: an older run is moved to {target.name}", file=sys.stderr)
        self.close()
        self._claim()

    def _begin(self, old: Mapping[str, Any]) -> None:
        self._began = time.perf_counter() - float(old.get("seconds", 0.0))
        self._manifest = {
            "kind": self.kind,
            "status": "running",
            "fingerprint": self.fingerprint,
            "parents": self.parents,
            "seed": self.config.get("seed"),
            "started": old.get("started") or _now(),
            **{k: old[k] for k in (*BEGUN, "device", "dtype", "threads", "guard", "warnings") if k in old},
        }
        here = environment()
        for key in BEGUN:
            self._differs(key, here[key])
        self._manifest.update(here)
        self._write_manifest("running")

    def _write_manifest(self, status: str) -> None:
        self._manifest.update(status=status, updated=_now(), seconds=round(time.perf_counter() - self._began, 2))
        if self.bad_rows.count:
            self._manifest["bad_rows"] = self.bad_rows.as_row()
        write_atomic(self.path / "manifest.json", json.dumps(self._manifest, indent=1, ensure_ascii=False))

    def recall(self, key: str) -> Any:
        """A fact that an earlier process of this run has noted (device, dtype, threads), or None."""
        return self._manifest.get(key)

    def note(self, **facts: Any) -> None:
        """Write facts such as device, dtype and threads into the manifest.

        One that differs from what the run began with becomes a warning there and on stderr: the resumed result may
        differ from an unbroken run's in the last bits.
        """
        for key, value in facts.items():
            self._differs(key, value)
        self._manifest.update(facts)
        self._write_manifest(str(self._manifest.get("status", "running")))

    def _differs(self, key: str, value: Any) -> None:
        before = self._manifest.get(key)
        if before not in (None, value):
            warning = f"resumed with {key}={value}, begun with {before}: perhaps no longer bit-equal to an unbroken run"
            self._manifest.setdefault("warnings", []).append(warning)
            print(f"{self.path}: {warning}", file=sys.stderr)

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
            raise unwritable(self.path / "metrics.jsonl", error) from error

    def sync(self) -> None:
        """Wait until metrics and samples are on the disk: before a checkpoint says that their steps are done."""
        for name in LOGS:
            try:
                with (self.path / name).open("rb") as file:
                    os.fsync(file.fileno())
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unwritable(self.path / name, error) from error

    def truncate_metrics(self, last_step: int) -> None:
        """Drop the logs' rows after `last_step`: on resume the steps since the checkpoint are run again."""
        for name in LOGS:
            path = self.path / name
            if path.exists():
                rows = [row for row in read_jsonl_tolerant(path) if row.get("step", 0) <= last_step]
                write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl."""
        self.append("samples.jsonl", rows)

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to one of LOGS."""
        path = self.path / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise unwritable(path, error) from error

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
    # split at "\n" alone: splitlines would also cut at U+2028, which a model's text may hold
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue
