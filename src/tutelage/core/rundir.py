"""A run directory: resolved config, manifest with lineage, metrics, samples, checkpoints, model, summary.

Nothing in it is overwritten silently: a finished run with the same fingerprint is reused, an unfinished one is resumed,
and a directory made by another configuration is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import tomli_w

from tutelage.core.config import digest
from tutelage.core.errors import RunError


def write_atomic(path: Path, text: str) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot write ({error.strerror}); free space or choose another out=") from error


def _drop_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_drop_none(v) for v in value]
    return value


class RunDir:
    """One stage's directory, locked while it is being written.

    `fingerprint` = hash of the resolved config and of the parents' hashes: equal fingerprint means equal result.
    """

    def __init__(self, path: str | Path, kind: str, config: Mapping[str, Any], parents: Sequence[str | Path] = ()):
        self.path = Path(path)
        self.kind = kind
        self.config = _drop_none({k: v for k, v in dict(config).items() if k != "out"})
        self.parents = [parent_entry(p) for p in parents]
        self.fingerprint = digest({"kind": kind, "config": self.config, "parents": [p["hash"] for p in self.parents]})
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None

    def open(self, restart: bool = False) -> str:
        """Claim the directory. Returns "finished", "resume" or "fresh"; raises RunError if it is in use or another's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{self.path}: in use by another process; wait for it or choose another out=") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be used as a run directory ({error.strerror})") from None
        old = read_manifest(self.path)
        if old is None:
            foreign = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if foreign:
                raise RunError(f"{self.path}: not empty and not a run directory; choose another out=")
        elif old["fingerprint"] != self.fingerprint:
            if not restart:
                raise RunError(
                    f"{self.path}: holds a {old['kind']} run with another configuration or other inputs; "
                    "choose another out=, or give restart=true to move it aside"
                )
            self._move_aside()
        elif old["status"] == "finished":
            return "finished"
        else:
            self._write_manifest("running", started=old.get("started"))
            return "resume"
        write_atomic(self.path / "config.toml", tomli_w.dumps(self.config))
        self._write_manifest("running")
        return "fresh"

    def _move_aside(self) -> None:
        target = self.path.with_name(f"{self.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        target.mkdir()
        for entry in self.path.iterdir():
            if entry.name != ".lock":
                shutil.move(str(entry), target / entry.name)

    def _write_manifest(self, status: str, started: str | None = None) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        manifest = {
            "kind": self.kind,
            "status": status,
            "fingerprint": self.fingerprint,
            "parents": self.parents,
            "argv": sys.argv,
            "seed": self.config.get("seed"),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in ("tutelage", "torch", "transformers", "tokenizers")},
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
            "started": started or now,
            "updated": now,
        }
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl and flush it."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        self._metrics.flush()

    def truncate_metrics(self, last_step: int) -> None:
        """Drop rows after `last_step`: on resume the steps since the checkpoint are run again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            rows = [row for row in read_jsonl_tolerant(path) if row.get("step", 0) <= last_step]
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def sample(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Write summary.json, mark the run finished and release the lock."""
        write_atomic(self.path / "summary.json", json.dumps(dict(summary), indent=1, ensure_ascii=False))
        old = read_manifest(self.path) or {}
        self._write_manifest("finished", started=old.get("started"))
        self.close()
        return self.path

    def close(self) -> None:
        """Release the lock and files; the run stays resumable."""
        for file in (self._metrics, self._lock):
            if file is not None:
                file.close()
        self._metrics = self._lock = None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None if it has none."""
    file = Path(path) / "manifest.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{file}: damaged manifest; remove the directory or choose another out=") from None


def parent_entry(path: str | Path) -> dict[str, str]:
    """Lineage entry of an input: a run directory by its fingerprint, anything else by names, sizes and times."""
    path = Path(path)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest:
        return {"name": manifest["kind"], "path": str(path), "hash": manifest["fingerprint"]}
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return {"name": path.name, "path": str(path), "hash": digest([(p.name, p.stat().st_size) for p in files])}
    return {"name": path.name, "path": str(path), "hash": digest(str(path))}


def read_jsonl_tolerant(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of our own log; a last line cut by a kill is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
