"""What a run was made from and where: hashes of its inputs, and the machine and code that made it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tutelage.core.config import digest
from tutelage.core.errors import RunError
from tutelage.core.remember import remembered

WHOLE = 64 << 20
"""Files up to this many bytes are hashed whole."""
EDGE = 1 << 20
"""Of a larger one: its size, time of change, and this many bytes at either end."""
SETTLED = 2.0
"""Seconds after a change from when on a file's times are taken to tell the next one."""
PARTS = {
    "weights": r"\.(safetensors|bin|pt|pth)(\.index\.json)?$",
    "tokenizer": r"^(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)|\.(model|jinja)$",
    "settings": r"config\.json$|\.py$",
}
"""Which files of a model folder are what; others (a README, a trainer's state) are nothing to its answers."""


def file_digest(path: Path) -> str:
    """Hash of a file's contents; of a very large file, of its size, time and both ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        found = hashlib.sha256(f"{size}:{path.stat().st_mtime_ns}".encode())
        found.update(file.read(EDGE))
        file.seek(-EDGE, os.SEEK_END)
        found.update(file.read(EDGE))
    return found.hexdigest()[:16]


def content_digest(path: Path) -> str:
    """Hash of all of a file's contents. A large file is read once: its hash is remembered by its size and times."""

    def whole() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    stat = path.stat()
    # a file that was written just now may be written again within the clock's tick
    if stat.st_size <= WHOLE or time.time() - max(stat.st_mtime, stat.st_ctime) < SETTLED:
        return whole()
    key = f"{path.resolve()} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return remembered("contents", key, whole, str)


def model_contents(folder: Path) -> dict[str, str]:
    """Hashes of what decides about a model folder's answers: its weights, its tokenizer, and its settings.

    RunError when a file of it cannot be read.
    """
    parts: dict[str, list[tuple[str, str]]] = {"weights": [], "tokenizer": [], "settings": []}
    try:
        for file in sorted(p for p in (*folder.iterdir(), *folder.glob("tokenizer/*")) if p.is_file()):
            name = str(file.relative_to(folder))
            part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), None)
            if part is not None:
                parts[part].append((name, content_digest(file)))
    except OSError as error:
        raise RunError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    return {part: digest(found) for part, found in parts.items()}


def parent_entry(path: str | Path) -> dict[str, str]:
    """Lineage entry of an input: a run directory by its fingerprint, files by their contents, a name by itself.

    An input that cannot be read raises RunError: its contents are part of what the run is.
    """
    path = Path(path)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest:
        return {"name": str(manifest["kind"]), "path": str(path), "hash": str(manifest["fingerprint"])}
    if not path.exists():
        return {"name": path.name, "path": str(path), "hash": digest(str(path))}
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            contents: Any = [(str(p.relative_to(path)), file_digest(p)) for p in files]
        else:
            contents = file_digest(path)
    except OSError as error:
        raise RunError(f"{error.filename or path}: cannot be read ({error.strerror})") from None
    return {"name": path.name, "path": str(path), "hash": digest(contents)}


def read_manifest(path: str | Path) -> dict[str, Any] | None:
    """The manifest of a run directory, or None if it has none."""
    file = Path(path) / "manifest.json"
    if not file.exists():
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not {"kind", "fingerprint", "status"} <= set(manifest):
        raise RunError(f"{file}: damaged manifest; remove the directory or choose another out=")
    return manifest


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit of the source tree this package runs from ("-dirty" if edited), or None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Command, versions, commit and processor of this process; threads and dtype join when the stage has set them."""
    return {
        "argv": list(sys.argv),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("tutelage", "torch", "transformers", "tokenizers")},
        "commit": commit(),
        "cpu": cpu_name(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
